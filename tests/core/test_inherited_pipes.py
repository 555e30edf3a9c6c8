"""Pipes, queues and terminals that are open before a fork: which of them lead to somebody else."""

import multiprocessing
import os
import pty
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from servd.ground.process import open_fds
from servd.replica.native.inherited import shared_lines
from servd.replica.native.pipes import open_pipes


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def a_program(stack: ExitStack, stdout: int | None = None) -> subprocess.Popen[bytes]:
    # closes its pipes and waits for it
    return stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stdout))


def peers(before: set[int]) -> list[str]:
    return [one.peer for one in open_pipes(open_fds() - before)]


def test_the_answers_of_a_program_are_for_one_process(stack: ExitStack) -> None:
    before = open_fds()
    program = a_program(stack, subprocess.PIPE)
    assert program.stdout is not None
    [found] = open_pipes(open_fds() - before)
    assert (found.fd, found.peer, found.is_http) == (program.stdout.fileno(), f"process {program.pid} (cat)", False)
    assert shared_lines(open_fds()) == []


def test_who_answers_nothing_or_no_more_is_left_out(stack: ExitStack) -> None:
    before = open_fds()
    a_program(stack)
    stack.enter_context(subprocess.Popen(["true"], stdout=subprocess.PIPE)).wait()
    # both ends are here: it wakes somebody up
    for end in os.pipe():
        stack.callback(os.close, end)
    assert peers(before) == []


def test_whoever_the_other_process_is(stack: ExitStack) -> None:
    before = open_fds()
    ours, theirs = os.pipe()
    stack.callback(os.close, ours)
    program = a_program(stack, theirs)
    os.close(theirs)
    assert peers(before) == [f"process {program.pid} (cat)"]
    assert program.stdin is not None
    program.stdin.close()
    program.wait()
    assert peers(before) == []


def test_queues_of_multiprocessing_are_told_also_before_anybody_uses_them(stack: ExitStack) -> None:
    before = open_fds()
    queue = multiprocessing.get_context("fork").SimpleQueue()
    stack.callback(queue.close)
    ends = multiprocessing.Pipe()
    for end in ends:
        stack.callback(end.close)
    assert peers(before) == ["a queue or pipe of multiprocessing"] * 3


def test_pools_of_which_each_replica_has_its_own_are_left_out(stack: ExitStack) -> None:
    before = open_fds()
    pool = ProcessPoolExecutor(1)
    stack.callback(pool.shutdown)
    assert peers(before) == []


def test_a_program_in_a_terminal(stack: ExitStack) -> None:
    before = open_fds()
    pid, fd = pty.fork()
    if not pid:
        with suppress(OSError):
            os.execvp("cat", ["cat"])
        os._exit(1)
    assert peers(before) == ["a program in a terminal"]
    os.close(fd)
    os.waitpid(pid, 0)
    assert peers(before) == []
