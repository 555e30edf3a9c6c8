"""Event loops, pipes, pairs of sockets, counters and sets of descriptors that are there before a fork: each child has its own."""

import asyncio
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from servd.ground.process import open_fds
from servd.replica.native import waiting_sets, wakers
from servd.replica.native.waiting_sets import note_waiting_sets, renewed_waiting_sets
from servd.replica.native.wakers import note_wakers, renew_wakers

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _own_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_sets, "_found", [])
    for name in ("_pipes", "_pairs", "_counters"):
        monkeypatch.setattr(wakers, name, [])


@pytest.fixture
def before() -> set[int]:
    return open_fds()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def note(before: set[int]) -> None:
    note_wakers(open_fds() - before)
    note_waiting_sets(open_fds() - before)


def in_child(work: Callable[[], Any]) -> None:
    """`work` in a forked child, which has made anew what it inherits."""
    pid = os.fork()
    if not pid:
        try:
            with renewed_waiting_sets():
                renew_wakers()
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def a_pipe(stack: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


def a_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    for end in (one, other):
        stack.enter_context(end)
        end.setblocking(False)
    return one, other


def test_what_a_child_writes_to_itself_nobody_else_reads(before: set[int], stack: ExitStack) -> None:
    there, here = a_pipe(stack)
    os.set_blocking(there, False)
    one, other = a_pair(stack)
    counter = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
    stack.callback(os.close, counter)
    os.write(here, b"left")
    one.send(b"left")
    other.send(b"behind")
    os.eventfd_write(counter, 2)
    note(before)

    def work() -> None:
        assert os.read(there, 9) == b"left"
        assert (other.recv(9), one.recv(9)) == (b"left", b"behind")
        assert [os.eventfd_read(counter) for _ in range(2)] == [1, 1]
        assert not any(os.get_inheritable(fd) for fd in (there, here, one.fileno(), other.fileno()))
        os.write(here, b"mine")
        one.send(b"mine")
        os.eventfd_write(counter, 5)

    in_child(work)
    assert os.read(there, 9) == b"left"
    assert (other.recv(9), one.recv(9)) == (b"left", b"behind")
    assert [os.eventfd_read(counter) for _ in range(2)] == [1, 1]
    for nothing_left in (lambda: os.read(there, 1), lambda: other.recv(1), lambda: os.eventfd_read(counter)):
        with pytest.raises(BlockingIOError):
            nothing_left()


def test_what_a_program_holds_too_stays(before: set[int], stack: ExitStack) -> None:
    there, here = a_pipe(stack)
    program = stack.enter_context(
        subprocess.Popen(["sh", "-c", f"head -n1 >/dev/fd/{here}"], stdin=subprocess.PIPE, pass_fds=[here])
    )
    note(before)

    def work() -> None:
        assert program.stdin is not None
        os.write(program.stdin.fileno(), b"hello\n")
        assert os.read(there, 9) == b"hello\n"

    in_child(work)


def test_what_the_parent_has_closed_since_is_left_alone(before: set[int], stack: ExitStack) -> None:
    there, here = os.pipe()
    note(before)
    os.close(there)
    os.close(here)
    again = a_pipe(stack)
    assert again == (there, here)
    in_child(lambda: os.write(here, b"another"))
    assert os.read(there, 9) == b"another"


def test_a_child_waits_for_descriptors_of_its_own(before: set[int], stack: ExitStack) -> None:
    there, here = a_pipe(stack)
    waiting = stack.enter_context(select.epoll())
    waiting.register(there, select.EPOLLIN)
    outer = stack.enter_context(select.epoll())
    outer.register(waiting, select.EPOLLIN)
    note(before)

    def work() -> None:
        os.write(here, b"x")
        assert waiting.poll(5) == [(there, select.EPOLLIN)]
        assert outer.poll(5) == [(waiting.fileno(), select.EPOLLIN)]
        waiting.unregister(there)
        assert waiting.poll(0) == []

    in_child(work)
    assert waiting.poll(0) == []
    os.write(here, b"x")
    assert waiting.poll(5) == [(there, select.EPOLLIN)], "the child has taken it out of its own set alone"


def test_a_loop_hears_of_its_threads_while_another_child_waits_on_its_copy(before: set[int], stack: ExitStack) -> None:
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    note(before)
    started, ended = a_pipe(stack), a_pipe(stack)

    def wait() -> None:
        # whoever else waits there takes each news of the other's thread
        loop.call_soon(os.write, started[1], b"x")
        loop.add_reader(ended[0], loop.stop)
        loop.run_forever()

    other = threading.Thread(target=in_child, args=(wait,))
    other.start()
    os.read(started[0], 1)

    async def news() -> None:
        for _ in range(20):
            heard = asyncio.Event()
            threading.Timer(0.002, loop.call_soon_threadsafe, (heard.set,)).start()
            await asyncio.wait_for(heard.wait(), 5)

    try:
        in_child(lambda: loop.run_until_complete(news()))
    finally:
        os.write(ended[1], b"x")
        other.join()
