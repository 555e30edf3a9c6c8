"""Lines on a stream that holds its writers up."""

import fcntl
import os
import time

from servd.ground.shared_stream import SharedStream
from servd.observability.shown_lines import HURRY_S, MAX_WAITING_BYTES, HurriedLines, ShownLines


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


def test_lines_of_several_processes_stay_whole_however_long_they_are() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    pids = []
    for letter in b"abc":
        pid = os.fork()
        if pid == 0:
            shown = ShownLines(writer)
            for size in (10, 5000, 100, 70_000) * 4:
                shown.write(bytes([letter]) * size + b"\n")
            shown.finish(60.0)
            os._exit(0)
        pids.append(pid)
    os.close(writer)
    with open(reader, "rb") as stream:
        lines = stream.read().splitlines()
    for pid in pids:
        os.waitpid(pid, 0)
    assert [line for line in lines if len(set(line)) > 1] == []
    assert sorted(map(len, lines)) == sorted((10, 5000, 100, 70_000) * 12)


def test_a_stream_that_another_program_has_made_one_that_does_not_wait_loses_no_line() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    shown = ShownLines(writer)
    lines = [b"%d " % number + b"x" * 9000 for number in range(30)]
    for line in lines:
        shown.write(line + b"\n")
    found = b""
    while found.count(b"\n") < len(lines):
        found += os.read(reader, 5000)
    assert found.splitlines() == lines
    os.close(writer)
    os.close(reader)


def test_a_process_that_may_have_no_thread_waits_a_moment_once_and_tells_what_it_dropped() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    hurried = HurriedLines(writer)
    began = time.monotonic()
    for number in range(1000):
        hurried.write(f"{number} {'x' * 100}\n")
    assert time.monotonic() - began < 20 * HURRY_S
    found = os.read(reader, 65536).splitlines()
    assert [line.split()[0] for line in found] == [b"%d" % number for number in range(len(found))]
    hurried.write("and on\n")
    assert os.read(reader, 65536).splitlines() == [
        b"servd: %d times lines were not shown: nobody reads them fast enough" % (1000 - len(found)),
        b"and on",
    ]
    os.close(writer)
    os.close(reader)


def test_a_line_that_broke_off_does_not_become_the_begin_of_the_next_one() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    stream = SharedStream(writer)
    assert not stream.write(b"x" * 9000 + b"\n", 0.0)
    assert set(os.read(reader, 65536)) == set(b"x")
    assert stream.write(b"next\n", 0.0)
    assert os.read(reader, 65536) == b"\nnext\n"
    os.close(writer)
    os.close(reader)
