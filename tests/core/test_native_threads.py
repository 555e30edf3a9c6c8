"""Whose thread it is, by the words on its stack."""

import os
import struct
import threading

import pytest

from servd.replica.native.threads import _library_of, _segments, _stack_from, _wait_now, own_part

PYTHON = (0x422000, 0x844000, "/usr/bin/python3.14")
BLAS = (0x7F92BA482000, 0x7F92BB7B0000, "/site-packages/numpy.libs/libscipy_openblas64_-4b78795a.so")


def test_the_size_of_a_stack_is_no_code_of_a_python_at_low_addresses() -> None:
    entry, size = 0x7F92BA819240, 8 * 1024 * 1024 + 4096
    assert PYTHON[0] <= size < PYTHON[1]
    stack = struct.pack("<4Q", 0x422123, entry, size, 0)
    assert _library_of(stack, [PYTHON, BLAS]) == "libscipy_openblas64_-4b78795a.so"
    assert _library_of(stack[:8], [PYTHON, BLAS]) == "python3.14"


def test_what_lies_behind_the_control_block_is_another_thread() -> None:
    """Stacks of two threads in one mapping, as with glibc 2.42."""
    at = 0x7F2180000000
    entry = BLAS[0] + 0x100
    block = at + 5 * 8
    one = struct.pack("<5Q", 0x422123, at, at + 16, 7, entry) + struct.pack("<4Q", block, 1, block, 0x422456)
    stack = one + bytes(2400) + struct.pack("<Q", BLAS[0] + 0x200) + bytes(8)
    assert _library_of(stack, [PYTHON, BLAS]) == "libscipy_openblas64_-4b78795a.so"
    assert _library_of(own_part(stack, at), [PYTHON, BLAS]) == "python3.14"
    assert own_part(stack, at + 8) == stack, "an address that is somebody else's"
    for short in (b"", stack[:7], stack[:50]):
        assert own_part(short, at) == short


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a control block that knows its own address is x86-64's")
def test_a_stack_ends_where_its_thread_does() -> None:
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            _, stacks = _segments()
            wait = _wait_now(str(thread.native_id))
            assert wait is not None
            stack = _stack_from(wait.stack_at, stacks)
            assert thread.ident is not None
            # Python's name of a thread is the address of its control block
            assert thread.ident < wait.stack_at + len(stack) <= thread.ident + 2304
    finally:
        ended.set()
        for thread in threads:
            thread.join()
