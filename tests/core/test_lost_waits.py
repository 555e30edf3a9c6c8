"""Waits for threads that the fork has left behind, and waits that look like them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from servd.replica.native.lost_waits import lost_waits, sleeps_for_ever
from servd.replica.native.threads import ThreadNow, Wait, innermost

FUTEX = 202 if os.uname().machine == "x86_64" else 98
PYTHON, ARROW, DUCKDB = "libpython3.11.so.1.0", "libarrow.so.2600", "_duckdb.cpython-311-x86_64-linux-gnu.so"
FOR_EVER = (1, 0x189, 0, 0, 0, 0xFFFFFFFF)


def a_thread(owner: str = PYTHON, waits_in: str = PYTHON, *libraries: str, **wait: Any) -> ThreadNow:
    fields = {"syscall": FUTEX, "arguments": FOR_EVER, **wait}
    return ThreadNow(Wait(7, **fields), owner, waits_in, frozenset({*libraries, waits_in} - {PYTHON}))


LOST = a_thread(PYTHON, ARROW)
RESTING = a_thread()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (FOR_EVER, True),
        ((1, 0x80, 2, 0, 0, 0), True),
        # a time limit; one that another process may wake; a wake; a read
        ((1, 0x189, 0, 0x7F00, 0, 0), False),
        ((1, 0x109, 0, 0, 0, 0), False),
        ((1, 0x81, 1, 0, 0, 0), False),
        ((), False),
    ],
)
def test_a_futex_of_this_process_without_a_limit_is_for_ever(arguments: tuple[int, ...], expected: bool) -> None:
    assert sleeps_for_ever(Wait(7, syscall=FUTEX, arguments=arguments)) is expected
    assert not sleeps_for_ever(Wait(7, syscall=0, arguments=FOR_EVER))
    assert not sleeps_for_ever(Wait(7))


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        ([LOST], 1),
        ([LOST, LOST], 2),
        # Python's own threads that wait for work, or whose code has called no library
        ([LOST, RESTING], 1),
        ([LOST, a_thread(syscall=230, arguments=(1, 0, 0, 0, 0, 0))], 1),
        # threads of other libraries that sleep themselves, or are known to do nothing that others wait for
        ([LOST, a_thread("libscipy_openblas64_-32a4b2a6.so", "libscipy_openblas64_-32a4b2a6.so")], 1),
        ([LOST, a_thread(ARROW, ARROW, name="jemalloc_bg_thd", arguments=(1, 0x189, 0, 9, 0, 0))], 1),
        ([LOST, a_thread("libzmq.so.5", "libzmq.so.5", name="ZMQbg/IO/0", syscall=232)], 1),
        # Python's own locks, queues and sleeps alone
        ([], 0),
        ([RESTING], 0),
        # a library that has left no thread behind: a model's own lock
        ([a_thread(PYTHON, "libmodel.so")], 0),
        # it computes, reads, or waits for a while
        ([a_thread(PYTHON, ARROW, syscall=None, arguments=())], 0),
        ([a_thread(PYTHON, ARROW, syscall=0)], 0),
        ([a_thread(PYTHON, ARROW, arguments=(1, 0x189, 0, 0x7F00, 0, 0))], 0),
        # another thread computes, reads, or is in the middle of a library: it may hold what this one waits for
        ([LOST, a_thread("", "", syscall=None)], 0),
        ([LOST, a_thread(PYTHON, PYTHON, ARROW, syscall=230)], 0),
        ([LOST, a_thread(PYTHON, PYTHON, ARROW)], 0),
        ([LOST, a_thread(PYTHON, "lib-dynload/_socket.cpython-311-x86_64-linux-gnu.so", ARROW, syscall=45)], 0),
        ([LOST, a_thread(PYTHON, DUCKDB)], 0),
        # the library's own thread is there; another's is at work; nobody knows whose it is
        ([LOST, a_thread(ARROW, ARROW)], 0),
        ([LOST, a_thread(DUCKDB, DUCKDB, syscall=None)], 0),
        ([LOST, a_thread(DUCKDB, DUCKDB, syscall=232)], 0),
        ([LOST, a_thread("", "")], 0),
    ],
)
def test_only_waits_that_nobody_can_end_are_lost(threads: Sequence[ThreadNow], expected: int) -> None:
    for order in (threads, threads[::-1]):
        assert len(lost_waits(order, {ARROW})) == expected
    assert not lost_waits(threads, ())


def test_idle_threads_hold_nothing_whatever_earlier_calls_have_left_on_their_stacks() -> None:
    idle = replace(RESTING, wait=replace(RESTING.wait, native_id=8), libraries=frozenset({ARROW}))
    assert len(lost_waits([LOST, idle], {ARROW}, {8})) == 1
    assert not lost_waits([LOST, idle], {ARROW})
    called = replace(idle, waits_in=DUCKDB)
    assert not lost_waits([LOST, called], {ARROW}, {8}), "the standard library has called a library"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], ""),
        ([(0, ARROW), (112, ARROW), (600, PYTHON)], ARROW),
        # left where the C library has its own frames: by an earlier call, or by the thread of before the fork that had this stack
        ([(40, ARROW), (136, PYTHON)], PYTHON),
        ([(40, ARROW), (248, "libffi.so.8.1.2"), (296, PYTHON)], "libffi.so.8.1.2"),
        ([(32, "libffi.so.8.1.2"), (80, PYTHON)], PYTHON),
        # a library that was called by `ctypes`, with frames of its own
        ([(40, ARROW), (400, "libffi.so.8.1.2"), (448, PYTHON)], ARROW),
    ],
)
def test_what_waits_is_the_innermost_code_but_for_what_is_left_over(
    files: list[tuple[int, str]], expected: str
) -> None:
    assert innermost(files) == expected


_CHILD = """
import asyncio, ctypes, os, queue, socket, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import polars as pl
from servd.replica.native.lost_waits import LOOK_S, SURE_S, LostWaits, note_threads
from servd.ground.clock import block_for
from servd.replica.native.threads import is_interpreter, waits_now

table = pl.DataFrame({"a": [1, 2, 3]})
executor = ThreadPoolExecutor(1)
ones = np.ones((300, 300))
libc = ctypes.CDLL(None)

def query(): table.lazy().filter(pl.col("a") > 1).select(pl.col("a").sum()).collect()
def idle(): executor.submit(int).result()
def lock(): held = threading.Lock(); held.acquire(); held.acquire()
def get(): queue.SimpleQueue().get()
def wait(): threading.Event().wait()
def sleep(): block_for(60)
def receive(): one, other = socket.socketpair(); one.recv(1)
def loop(): asyncio.run(asyncio.Event().wait())
def compute():
    while True:
        ones @ ones
def mutex():
    held = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(held); libc.pthread_mutex_lock(held)
def condition():
    held, changed = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(held); libc.pthread_cond_wait(changed, held)
def callback():
    # it is in the middle of polars when it waits for Python's lock
    table.map_rows(lambda row: threading.Event().wait())

class AnyLibrary(frozenset):
    def __bool__(self): return True
    def __contains__(self, name): return not is_interpreter(name)

def begin(does_compute):
    # each is where it waits once it has not woken for ten looks; what computes was seen at work
    seen, times, deadline = None, 0, time.monotonic() + 20
    while times < 10:
        assert time.monotonic() < deadline, seen
        before, seen = seen, {wait.native_id: wait for wait in waits_now()}
        is_still = seen == before and all(wait.syscall is not None for wait in seen.values())
        is_busy = any(wait.syscall is None for wait in seen.values())
        if does_compute:
            times += is_busy
        else:
            times = times + 1 if is_still else 0
        block_for(0.02)

def found(targets, left_behind):
    for target in targets:
        threading.Thread(target=target, daemon=True).start()
    watch = LostWaits(lambda callback: callback(), left_behind)
    verdict, now = None, 0.0
    begin(compute in targets)
    while verdict is None and now < 3 * SURE_S:
        verdict, now = watch.look(now, is_at_work=True), now + LOOK_S
    return verdict

def in_a_child(*targets, left_behind=None):
    reading, writing = os.pipe()
    if not os.fork():
        try:
            os.write(writing, repr(found(targets, left_behind)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    children.append(([target.__name__ for target in targets], reading))

query()
note_threads()
children = []
in_a_child(query)
in_a_child(query, idle)
for other in (compute, receive, callback, condition):
    in_a_child(query, other)
in_a_child(mutex)
in_a_child(condition)
for one in (lock, get, wait, sleep, receive, loop, compute):
    in_a_child(one, left_behind=AnyLibrary())
for names, reading in children:
    with open(reading) as file:
        print(names, file.read(), flush=True)
    os.wait()
"""


@pytest.mark.slow
def test_a_wait_in_a_forked_child_is_seen_for_what_it_is() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _CHILD]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    verdicts = dict(line.split("] ", 1) for line in said)
    assert len(verdicts) == 15
    # a thread that receives could wake no other; whether that shows depends on what earlier calls left on its stack
    beside_receive = verdicts.pop("['query', 'receive'")
    assert beside_receive == "None" or "waits in _polars_runtime" in beside_receive
    lost = [who for who, verdict in verdicts.items() if verdict != "None"]
    assert lost == ["['query'", "['query', 'idle'"], verdicts
    assert "waits in _polars_runtime" in verdicts[lost[0]]
    assert "called in <string>:" in verdicts[lost[0]], "the user's line"
