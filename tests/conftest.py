"""What holds for every test."""

import gc
import os
import sys
from collections.abc import Generator

import pytest

# the daemons of tests let each other alone, and what else runs on this host
os.environ.setdefault("SERVD_DASHBOARD_PORT", "0")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: the collector need not look at it again and again.

    Tests with their rewritten asserts are kept for the next run, whatever the environment says of writing compiled files.
    """
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    gc.disable()
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = writes_none
        gc.enable()
        gc.collect()
        gc.freeze()
