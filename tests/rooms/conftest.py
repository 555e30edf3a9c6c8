"""Rooms run on the loop that the product runs on: its transports differ from asyncio's where connections end."""

from asyncio import AbstractEventLoop
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """Loops of the tests in this folder."""
    return {"uvloop": uvloop.new_event_loop}
