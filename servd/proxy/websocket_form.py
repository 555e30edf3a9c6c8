"""The forwarder as an ASGI application, for WebSockets."""

import asyncio
from typing import Any

from servd.proxy.app_queue import AppQueue
from servd.proxy.asgi_form import AsgiForm
from servd.proxy.forwarded_call import ForwardedCall, NotedSend, response_headers
from servd.proxy.forwarder import CLIENT_GONE, Forwarder, answer_failure, answer_timeout, id_headers
from servd.proxy.http1_websocket import GOODBYE_S
from servd.proxy.probes import Answer
from servd.wire.http_answers import framing
from servd.wire.records import EVENT_COST_BYTES, RESTARTING, WEBSOCKET

_GOING_WRONG = 1011
_CLOSE = (b"connection", b"close")
"""After a refused handshake the connection is no good for anything else."""


class NotedHandshake(NotedSend):
    """Notes the whole life of a WebSocket, under the status that its handshake got."""

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"] == "websocket.http.response.start":
            self.status = message["status"]
        elif message["type"] == "websocket.close" and self.status == CLIENT_GONE:
            # what the server makes of a close before the handshake
            self.status = 403
        await self._send(message)


class WebSocketForm(AsgiForm):
    """Forwards one WebSocket per call.

    Attributes:
        open: those that are under way.
    """

    noted = NotedHandshake

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__(forwarder)
        self.open: set[ForwardedCall] = set()

    async def answer(self, send: NotedSend, answer: Answer) -> None:
        """Refuse the handshake."""
        status, block, body = answer
        how = framing("GET", status, "1.1", block, len(body))
        headers = [*response_headers(how.block, send.request_id), _CLOSE]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "websocket.http.response.body", "body": body if how.content_bytes else b"", "more_body": False}
        )

    async def forward(self, call: ForwardedCall, queue: AppQueue, send: NotedSend) -> None:
        """Send it on, and messages both ways, to the end."""
        call.subprotocols = tuple(call.scope.get("subprotocols", ()))
        credit = _Credit(call, queue)
        queue.when_over(credit.end)
        call.prepare(self.tail(call, b"", send.request_id), WEBSOCKET)
        self._forwarder.caller.submit(call, call.target.router)
        self.open.add(call)
        reader = self._loop.create_task(_read(queue, call, credit))
        try:
            await self._serve(send, call)
        finally:
            self.open.discard(call)
            reader.cancel()
            # a decent handler hears of the end and ends; the others are cancelled
            self._loop.call_later(GOODBYE_S, self._forwarder.caller.cancel, call)

    def drain(self) -> None:
        """Close them all: the service restarts."""
        for call in self.open:
            call.tell("close", RESTARTING)

    async def _serve(self, send: NotedSend, call: ForwardedCall) -> None:
        is_accepted = False
        while True:
            try:
                news = await call.next_news()
            except TimeoutError:
                self._forwarder.caller.cancel(call)
                stage = "waiting for a replica" if call.peer is None else "before the handler accepted"
                await self.answer(send, answer_timeout(call.limit_s, stage))
                return
            kind = news[0]
            if kind == "event":
                message, cost = news[1], news[2]
                # the time limit is for the answer to the handshake
                call.deadline = None
                is_accepted = is_accepted or message["type"] == "websocket.accept"
                await send(_for_client(message, send.request_id))
                call.take(cost)
                if message["type"] == "websocket.close" or _is_end_of_refusal(message):
                    return
            elif kind == "close":
                if call.peer is not None:
                    call.peer.send_event(call, {"type": "websocket.disconnect", "code": news[1], "reason": ""}, 0)
                await send({"type": "websocket.close", "code": news[1]})
                return
            elif kind == "disconnect":
                if not is_accepted:
                    self._forwarder.caller.cancel(call)
                return
            elif is_accepted:
                await send({"type": "websocket.close", "code": 1000 if news[1] is None else _GOING_WRONG})
                return
            else:
                await self.answer(send, _answer_of(news))
                return


class _Credit:
    """What the replica still takes of the client's messages.

    is_complete: no WebSocket goes on without its client, as a request may whose body has come.
    """

    is_complete = False

    def __init__(self, call: ForwardedCall, queue: AppQueue) -> None:
        self._queue = queue
        self.left = 0
        self.is_over = False
        self.granted = asyncio.Event()
        self.call = call
        call.stream = self  # type: ignore[assignment]

    def add_credit(self, size: int) -> None:
        self.left += size
        if self.left > 0:
            self.granted.set()

    def take_parts(self) -> None:
        """The replica puts messages together."""
        self._queue.takes_parts = True

    def end(self) -> None:
        """The client is gone: nobody waits for credit any more."""
        self.is_over = True
        self.granted.set()


async def _read(queue: AppQueue, call: ForwardedCall, credit: _Credit) -> None:
    while True:
        message = await queue.get()
        if message["type"] == "websocket.connect":
            continue
        if message["type"] == "websocket.disconnect":
            if call.peer is not None:
                end = {"code": message.get("code", 1005), "reason": message.get("reason", "")}
                call.peer.send_event(call, {"type": "websocket.disconnect", **end}, 0)
            call.tell("disconnect")
            return
        while credit.left <= 0 and not credit.is_over:
            credit.granted.clear()
            await credit.granted.wait()
        if credit.left <= 0:
            # the handler has not taken what came before, and will not be asked to
            continue
        data = message.get("bytes")
        size = (len(data) if data is not None else len(message.get("text") or "")) + EVENT_COST_BYTES
        credit.left -= size
        if call.peer is not None:
            call.peer.send_event(call, message, size)


def _for_client(message: dict[str, Any], request_id: bytes) -> dict[str, Any]:
    if message["type"] == "websocket.accept":
        headers = [tuple(pair) for pair in message.get("headers", ())]
        return {**message, "headers": [*headers, *id_headers(request_id)]}
    if message["type"] == "websocket.http.response.start":
        headers = [tuple(pair) for pair in message.get("headers", ())]
        return {**message, "headers": [*headers, *id_headers(request_id), _CLOSE]}
    return message


def _is_end_of_refusal(message: dict[str, Any]) -> bool:
    return message["type"] == "websocket.http.response.body" and not message.get("more_body", False)


def _answer_of(news: tuple[Any, ...]) -> Answer:
    if news[0] == "answer":
        answer: Answer = news[1]
        return answer
    if news[0] == "failure":
        return answer_failure(news[1])
    return answer_failure(RuntimeError("the WebSocket's handler ended before it accepted"))
