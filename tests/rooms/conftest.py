"""Rooms run on the loop that the product runs on: its transports differ from asyncio's where connections end."""

import ssl
from asyncio import AbstractEventLoop
from collections.abc import Callable

import pytest
import uvloop

from servd.daemon.tls import HTTP1, HTTP2, server_context
from tests.fakes import make_certificate


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """Loops of the tests in this folder."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What the data port speaks TLS with, and what a client that trusts it does."""
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"), "data")
    server = server_context(str(certificate), str(key), "--http-tls", (HTTP2, HTTP1))
    return server, ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(params=[False, True], ids=["Hypercorn", "handed over"])
def is_handed(request: pytest.FixtureRequest) -> bool:
    """Whether WebSockets of plain HTTP/1.1 are handed over to the replicas, or go through the proxy's lane."""
    return bool(request.param)
