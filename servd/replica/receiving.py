"""The receiving half of an exchange inside a replica: the body of a request, or the messages of a WebSocket's client."""

import asyncio
from collections import deque
from typing import Any

from servd.replica.caller_peer import CallerPeer
from servd.wire.records import CREDIT, CREDIT_BYTES, message_of
from servd.wire.uploading import Uploading, borrow_body

_GRANT_BYTES = CREDIT_BYTES // 4

Message = dict[str, Any]


class Receiving:
    """What the client sends of one request.

    Attributes:
        scope: ASGI scope. body: all of the request's body, or its beginning. upload: reads it from the client itself.
        is_finished: the response is complete.
    """

    # of the class until an instance needs its own: most requests set none of them
    is_disconnected = is_finished = _is_unheard = _is_body_open = False
    upload: Uploading | None = None
    _events: deque[Message] | None = None
    _parts: tuple[Message, ...] = ()
    _waiter: asyncio.Future[None] | None = None
    _taken = 0

    scope: dict[str, Any]
    call_id: int
    body: Any
    _peer: CallerPeer

    async def receive(self) -> Message:
        """ASGI `receive`: the request body piece by piece, then waits for the disconnect, or for the end of the answer."""
        if self._events is None:
            body, self.body = self.body, None
            if body is not None:
                return {"type": "http.request", "body": body, "more_body": False}
            self._events = deque()
        while not self._events:
            if self._is_told_all():
                return {"type": f"{self.scope['type']}.disconnect"}
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._events.popleft()
        cost = message.pop("cost", 0)
        if cost:
            self._grant(cost)
        return message

    def _is_told_all(self) -> bool:
        """Nothing more comes: the client is gone, or has its answer, after which nobody tells of it any more."""
        return self.is_disconnected or self.is_finished or (self._is_unheard and self._is_body_open)

    def expect_events(self, is_lent: bool) -> None:
        """The body, or a WebSocket's messages, come piece by piece; the body from the client itself where it `is_lent`."""
        self._events = deque()
        self._is_body_open = True
        if self.scope["type"] == "websocket":
            self._events.append({"type": "websocket.connect"})
        if is_lent:
            self.upload = borrow_body(self._peer, self.call_id, len(self.body), self.feed_body)
            if self.body:
                self.feed_body(self.body, True)
            self.body = b""
        else:
            self._peer.send((CREDIT, self.call_id, CREDIT_BYTES, True))

    def feed_body(self, data: bytes, more: bool) -> None:
        """A piece of a streamed request body arrived."""
        self._is_body_open = more
        if self._events is not None:
            self._events.append({"type": "http.request", "body": data, "more_body": more, "cost": len(data)})
            self._wake()

    def feed_event(self, message: Message, cost: int) -> None:
        """A message of the WebSocket's client arrived, or a part of one."""
        if message.get("more"):
            self._parts = (*self._parts, message)
            self._grant(cost)
            return
        if self._parts:
            message, self._parts = message_of((*self._parts, message)), ()
        if self._events is not None:
            self._events.append({**message, "cost": cost})
            self._wake()
        if message["type"] == "websocket.disconnect":
            self._stop_sending()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _grant(self, cost: int) -> None:
        if self.upload is not None and self.upload.took(cost):
            return
        self._taken += cost
        if self._taken >= _GRANT_BYTES:
            self._peer.send((CREDIT, self.call_id, self._taken))
            self._taken = 0

    def _stop_sending(self) -> None:
        raise NotImplementedError
