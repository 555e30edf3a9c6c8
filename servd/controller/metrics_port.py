"""The metrics port: a loopback port that serves `GET /metrics` and nothing else, so any local user may read it.

A few lines of HTTP of its own: the admin server is half of the controller in time to load and in memory, and a scraper
must not be a reason to load it.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from servd.documents.runtime_env import is_loopback

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 32
HEAD_LIMIT_S = 5.0
SEND_LIMIT_S = 10.0

_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}


class MetricsPort:
    """Answers one request per connection.

    Args:
        text: gives the metrics, where it is told so with the names of today's Ray.
    """

    def __init__(self, listener: socket.socket, text: Callable[[bool], Awaitable[str]]) -> None:
        self._listener = listener
        self._text = text
        self._server: asyncio.Server | None = None
        self._open = 0

    def __repr__(self) -> str:
        return f"MetricsPort({self._listener.getsockname()}, open={self._open})"

    async def start(self) -> None:
        """Accept connections."""
        self._listener.setblocking(False)
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=MAX_HEAD_BYTES)

    def close(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(HEAD_LIMIT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.decode("latin-1")))
                async with asyncio.timeout(SEND_LIMIT_S):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # gone, slow, or no HTTP
            pass
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: str) -> bytes:
        first, *lines = head.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(400, "no HTTP/1 request\n")
        # a page in somebody's browser that calls this port by a name of its own must learn nothing
        hosts = [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.lower() == "host"]
        if any(not is_loopback(_name_of(host)) for host in hosts):
            return _response(403, "ask by a loopback address\n")
        path, _, query = words[1].partition("?")
        if path != "/metrics":
            return _response(404, "only /metrics is here\n")
        if words[0] not in ("GET", "HEAD"):
            return _response(405, "only GET\n", "allow: GET, HEAD\r\n")
        return _response(200, await self._text(query == "dialect=today"), is_head=words[0] == "HEAD")


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _response(status: int, text: str, lines: str = "", *, is_head: bool = False) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"{lines}connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else body)
