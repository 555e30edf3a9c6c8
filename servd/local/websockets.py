"""The client's end of a WebSocket to an application of this process, for code with and without an event loop."""

import asyncio
import concurrent.futures
import json
from types import TracebackType
from typing import Any, TypeVar

from starlette.websockets import WebSocketDisconnect

from servd.local.http import OVER, LocalCall, Message

Found = TypeVar("Found")


class _End:
    """What both kinds share: messages in both directions, no waiting.

    Attributes:
        subprotocol: that the application chose, None = none. headers: of its answer.
    """

    def __init__(self, call: LocalCall, timeout_s: float | None) -> None:
        self._call, self._timeout_s = call, timeout_s
        self._is_closed = False
        self.subprotocol: str | None = None
        self.headers: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._call}{', closed' if self._is_closed else ''})"

    def _take_answer(self, message: Message) -> None:
        if message["type"] != "websocket.accept":
            self._is_closed = True
            raise _end_of(message)
        self.subprotocol = message.get("subprotocol")
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]

    def _put(self, **data: Any) -> None:
        if self._is_closed:
            raise RuntimeError("this WebSocket is closed")
        self._call.put({"type": "websocket.receive", **data})

    def _data_of(self, message: Message) -> Any:
        if message["type"] != "websocket.send":
            self._is_closed = True
            raise _end_of(message)
        text = message.get("text")
        return message.get("bytes") if text is None else text


def _end_of(message: Message) -> WebSocketDisconnect:
    kind = message["type"]
    if kind == "websocket.close":
        return WebSocketDisconnect(message.get("code", 1000), message.get("reason") or "")
    if kind == OVER:
        return WebSocketDisconnect(1006, "the handler ended without closing the WebSocket")
    return WebSocketDisconnect(1006, f"the application answered {kind} {message.get('status', '')}".rstrip())


def _as(kind: type[Found], data: Any) -> Found:
    if not isinstance(data, kind):
        raise TypeError(f"the application sent {type(data).__name__}, not {kind.__name__}: {data!r:.100}")
    return data


class WebSocket(_End):
    """For code without event loop; a context manager that closes it, and waits for the end of its handler.

    All that receive raise `starlette.websockets.WebSocketDisconnect` with code and reason once the application has closed it,
    what its handler raised, and `TimeoutError`.
    """

    def __enter__(self) -> "WebSocket":
        self._take_answer(self._next())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send_text(self, data: str) -> None:
        """A text message."""
        self._put(text=data)

    def send_bytes(self, data: bytes) -> None:
        """A binary message."""
        self._put(bytes=data)

    def send_json(self, data: Any) -> None:
        """A text message, in JSON."""
        self._put(text=json.dumps(data))

    def receive(self) -> str | bytes:
        """The next message, whichever it is."""
        found: str | bytes = self._data_of(self._next())
        return found

    def receive_text(self) -> str:
        """The next message. TypeError: it is binary."""
        return _as(str, self.receive())

    def receive_bytes(self) -> bytes:
        """The next message. TypeError: it is text."""
        return _as(bytes, self.receive())

    def receive_json(self) -> Any:
        """The next message, out of JSON."""
        return json.loads(self.receive())

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it and wait until its handler has ended; raises what that raised."""
        self._is_closed = True
        self._call.leave(code, reason).result()

    def _next(self) -> Message:
        return waited_for(self._call.next(), self._timeout_s)


class AsyncWebSocket(_End):
    """As `WebSocket`, for code with an event loop."""

    async def __aenter__(self) -> "AsyncWebSocket":
        self._take_answer(await self._next())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send_text(self, data: str) -> None:
        """A text message."""
        self._put(text=data)

    async def send_bytes(self, data: bytes) -> None:
        """A binary message."""
        self._put(bytes=data)

    async def send_json(self, data: Any) -> None:
        """A text message, in JSON."""
        self._put(text=json.dumps(data))

    async def receive(self) -> str | bytes:
        """The next message, whichever it is."""
        found: str | bytes = self._data_of(await self._next())
        return found

    async def receive_text(self) -> str:
        """The next message. TypeError: it is binary."""
        return _as(str, await self.receive())

    async def receive_bytes(self) -> bytes:
        """The next message. TypeError: it is text."""
        return _as(bytes, await self.receive())

    async def receive_json(self) -> Any:
        """The next message, out of JSON."""
        return json.loads(await self.receive())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it and wait until its handler has ended; raises what that raised."""
        self._is_closed = True
        await asyncio.wrap_future(self._call.leave(code, reason))

    async def _next(self) -> Message:
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.wrap_future(self._call.next())


def waited_for(future: "concurrent.futures.Future[Found]", timeout_s: float | None) -> Found:
    """Its result. TimeoutError: it took longer; it is taken back then."""
    try:
        return future.result(timeout_s)
    except TimeoutError:
        future.cancel()
        raise
