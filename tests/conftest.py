"""What holds for every test."""

import gc
import logging
import os
import sys
from collections.abc import Generator, Iterator

import pytest

# the daemons of tests let each other alone, and what else runs on this host
os.environ.setdefault("SERVD_DASHBOARD_PORT", "0")

ORDER = ("core/test_simulation.py", "faults", "system", "wire", "apps", "rooms", "engines", "core", "house")
"""Where a test lies -> when it runs: the files that take longest first, so that all workers end at one time."""


def place_of(item: pytest.Item) -> int:
    lies = item.nodeid.removeprefix("tests/")
    return next((place for place, begin in enumerate(ORDER) if lies.startswith(begin)), len(ORDER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file stay together, as they are written."""
    items.sort(key=place_of)


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


def silenced() -> set[logging.Logger]:
    return {logger for logger in logging.root.manager.loggerDict.values() if getattr(logger, "disabled", False)}  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _loggers_speak_again() -> Iterator[None]:
    """`logging.config` silences all loggers of a process, those of libraries that tests to come listen to among them."""
    before = silenced()
    yield
    for logger in silenced() - before:
        logger.disabled = False
