"""Lines on a stream that holds its writers up."""

import fcntl
import os

from servd.observability.shown_lines import MAX_WAITING_BYTES, ShownLines


def test_lines_are_shown_in_their_order() -> None:
    reader, writer = os.pipe()
    shown = ShownLines(writer)
    for number in range(100):
        shown.write(f"{number} ü\n")
    shown.finish(5.0)
    assert os.read(reader, 4096).decode().splitlines() == [f"{number} ü" for number in range(100)]
    os.close(reader)
    os.close(writer)


def test_nobody_waits_for_a_reader_that_has_stopped() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    shown = ShownLines(writer)
    line = b"x" * 1023 + b"\n"
    for _ in range(3 * MAX_WAITING_BYTES // len(line)):
        shown.write(line)
    shown.finish(0.01)
    # it reads again
    found = b""
    while b"nobody reads them fast enough\n" not in found:
        found += os.read(reader, 65536)
        shown.write(b"and on\n")
        assert len(found) < 2 * MAX_WAITING_BYTES
    os.close(writer)
    os.close(reader)


def test_a_stream_without_a_reader_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    shown = ShownLines(writer)
    shown.write("lost\n")
    shown.finish(5.0)
    os.close(writer)


def test_a_child_shows_its_own_lines_alone() -> None:
    reader, writer = os.pipe()
    shown = ShownLines(writer)
    shown.write("parent's\n")
    shown.finish(5.0)
    pid = os.fork()
    if pid == 0:
        shown.write("child's\n")
        shown.finish(5.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 4096) == b"parent's\nchild's\n"
    os.close(writer)
    os.close(reader)
