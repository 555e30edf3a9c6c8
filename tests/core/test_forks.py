"""A fork that the host refuses leaves nothing behind, and takes nothing with it that others use."""

import errno
import gc
import multiprocessing.util
import os
import sys
from multiprocessing import resource_tracker

import pytest

from servd.ground import forks, process


class Refused:
    """A child of multiprocessing's that the host has no process for, though it had one for the tracker."""

    def __init__(self) -> None:
        self.tracker_fd = -1

    def start(self) -> None:
        # as a spawn does
        self.tracker_fd = resource_tracker._resource_tracker._fd = os.dup(0)
        os.pipe()
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_refused_spawn_leaves_no_pipe_and_closes_no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    # the one of these tests is another
    monkeypatch.setattr(resource_tracker, "_resource_tracker", resource_tracker.ResourceTracker())
    before, child = process.open_fds(), Refused()
    assert "process" in forks.start(child)
    assert process.open_fds() - before == {child.tracker_fd}
    os.close(child.tracker_fd)
    resource_tracker._resource_tracker._fd = None


class WithoutFlush:
    """As of applications that hand on what is printed."""

    def write(self, text: str) -> int:
        return len(text)


class Odd(WithoutFlush):
    def flush(self) -> None:
        raise RuntimeError("not now")


class Started:
    has_started = False

    def start(self) -> None:
        self.has_started = True


@pytest.mark.parametrize("stream", [None, WithoutFlush(), Odd()])
def test_whatever_an_application_has_put_in_place_of_its_streams(
    monkeypatch: pytest.MonkeyPatch, stream: object
) -> None:
    child = Started()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    assert forks.start(child) == ""
    monkeypatch.undo()
    assert child.has_started


def test_what_is_there_at_a_fork_is_left_to_the_parent() -> None:
    kept = [object(), {}]
    before = gc.get_freeze_count()
    forks.freeze()
    try:
        assert gc.get_freeze_count() > before
        assert not any(item is kept for item in gc.get_objects())
    finally:
        gc.unfreeze()


def test_a_child_keeps_the_standard_input_that_is_at_its_end() -> None:
    stdin, read_end, write_end = sys.stdin, *os.pipe()

    class Forked:
        def start(self) -> None:
            multiprocessing.util._close_stdin()  # type: ignore[attr-defined]
            os.write(write_end, b"same" if sys.stdin is stdin else b"other")

    close = multiprocessing.util._close_stdin  # type: ignore[attr-defined]
    try:
        assert forks.start(Forked()) == ""
        assert os.read(read_end, 10) == b"same"
        assert multiprocessing.util._close_stdin is close  # type: ignore[attr-defined]
    finally:
        os.close(read_end)
        os.close(write_end)
