"""Whose thread it is, by the words on its stack."""

import struct

from servd.replica.native.threads import _library_of

PYTHON = (0x422000, 0x844000, "/usr/bin/python3.14")
BLAS = (0x7F92BA482000, 0x7F92BB7B0000, "/site-packages/numpy.libs/libscipy_openblas64_-4b78795a.so")


def test_the_size_of_a_stack_is_no_code_of_a_python_at_low_addresses() -> None:
    entry, size = 0x7F92BA819240, 8 * 1024 * 1024 + 4096
    assert PYTHON[0] <= size < PYTHON[1]
    stack = struct.pack("<4Q", 0x422123, entry, size, 0)
    assert _library_of(stack, [PYTHON, BLAS]) == "libscipy_openblas64_-4b78795a.so"
    assert _library_of(stack[:8], [PYTHON, BLAS]) == "python3.14"
