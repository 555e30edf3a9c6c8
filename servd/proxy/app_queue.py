"""What a client sent, on its way to the call that serves it: bounded by bytes, and the end never waits."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

ROOM_BYTES = 64 * 1024
_MESSAGE_BYTES = 400
"""What a message costs beside its content: empty ones are not free."""
_SMALL_BYTES = 1024
"""Pieces of a body up to this size are put together; to copy larger ones costs more than it saves."""


async def _nothing() -> None:
    pass


class AppQueue:
    """Messages of one request or WebSocket. Small pieces of a body that wait are one message.

    Attributes:
        takes_parts: whoever takes messages of a WebSocket takes them in parts too, all but the last with "more".

    Args:
        is_patient: `put` waits while there is no room; otherwise whoever puts looks at `has_room`.
        room_bytes: more than this waits only as the last message.
        on_taken: awaited after each message that was taken.
        ask: awaited once, where the first message has not come by the time that it is wanted. Its client may wait for that.
    """

    def __init__(
        self,
        *,
        is_patient: bool = True,
        room_bytes: int = ROOM_BYTES,
        on_taken: Callable[[], Awaitable[None]] = _nothing,
        ask: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._ask = ask
        self.takes_parts = False
        self._room_bytes = room_bytes
        self._messages: deque[dict[str, Any]] = deque()
        self._is_patient = is_patient
        self._on_taken = on_taken
        self._on_over: Callable[[], None] | None = None
        self._bytes = 0
        self._is_over = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"AppQueue({len(self._messages)} messages, bytes={self._bytes}{', over' if self._is_over else ''})"

    @property
    def has_room(self) -> bool:
        """Whether further messages should be read from the client."""
        return self._bytes <= self._room_bytes or self._is_over

    @property
    def is_expecting(self) -> bool:
        """The client may wait to be asked."""
        return self._ask is not None

    async def put(self, message: dict[str, Any]) -> None:
        """Add a message; the news that the client is gone is always taken at once."""
        if message["type"].endswith(".disconnect"):
            self._is_over = True
        if message["type"] != "http.request" or not self._merge(message):
            self._messages.append(message)
            self._bytes += _size(message)
        self._changed.set()
        if self._is_over and self._on_over is not None:
            self._on_over()
        while self._is_patient and not self.has_room:
            await self._change()

    async def get(self) -> dict[str, Any]:
        """The next message."""
        if self._ask is not None:
            ask, self._ask = self._ask, None
            if not self._messages:
                await ask()
        while not self._messages:
            await self._change()
        message = self._messages.popleft()
        self._bytes -= _size(message)
        self._changed.set()
        await self._on_taken()
        return message

    def when_over(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the client is gone; `get` says so only behind what came before."""
        self._on_over = tell
        if self._is_over:
            tell()

    def give_up(self) -> None:
        """Let nobody wait for room any more: the connection is lost."""
        self._is_over = True
        self._changed.set()

    def _merge(self, piece: dict[str, Any]) -> bool:
        data = piece["body"]
        if len(data) > _SMALL_BYTES or not self._messages or self._messages[-1]["type"] != "http.request":
            return False
        last = self._messages[-1]
        if data:
            if type(last["body"]) is bytes:
                last["body"] = bytearray(last["body"])
            last["body"] += data
            self._bytes += len(data)
        last["more_body"] = piece["more_body"]
        return True

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _size(message: dict[str, Any]) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"") + _MESSAGE_BYTES
