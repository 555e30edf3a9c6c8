"""The forwarder as an ASGI application, for WebSockets."""

import asyncio
from typing import Any

from servd.proxy.asgi_form import AsgiForwarder, ForwardedCall, NotedSend, Receive, Send, response_headers
from servd.proxy.forwarder import CLIENT_GONE, Forwarder, Target, answer_failure, answer_timeout
from servd.proxy.probes import Answer
from servd.records import WEBSOCKET

RESTARTING = 1012
_GOING_WRONG = 1011
_EVENT_COST_BYTES = 64


class WebSocketForwarder:
    """Forwards one WebSocket per call.

    Attributes:
        open: those that are under way.
    """

    def __init__(self, forwarder: Forwarder, http: AsgiForwarder) -> None:
        self._forwarder = forwarder
        self._http = http
        self.open: set[ForwardedCall] = set()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Forward one WebSocket."""
        forwarder = self._forwarder
        target = forwarder.resolve(scope["raw_path"])
        if target is None:
            request_id = forwarder.request_id(dict(scope["headers"]).get(b"x-request-id"))
            noted = NotedHandshake(
                forwarder, "WEBSOCKET", forwarder.labels_of_unrouted(scope["raw_path"]), request_id, send
            )
            with noted:
                await _deny(noted, forwarder.answer_unrouted(scope["raw_path"]))
            return
        call, request_id = self._http.new_call(scope, target)
        noted = NotedHandshake(forwarder, "WEBSOCKET", target.labels, request_id, send)
        with noted:
            await self._forward(scope, receive, noted, target, call, request_id)

    async def _forward(
        self,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
        target: Target,
        call: ForwardedCall,
        request_id: bytes,
    ) -> None:
        call.subprotocols = tuple(scope.get("subprotocols", ()))
        credit = _Credit(call)
        call.prepare(self._http.tail(scope, target, b"", request_id), WEBSOCKET)
        self._forwarder.caller.submit(call, target.router)
        self.open.add(call)
        reader = self._forwarder.loop.create_task(_read(receive, call, credit))
        try:
            await self._serve(send, call, request_id)
        finally:
            self.open.discard(call)
            reader.cancel()

    def drain(self) -> None:
        """Close them all: the service restarts."""
        for call in self.open:
            call.tell("close", RESTARTING)

    async def _serve(self, send: Send, call: ForwardedCall, request_id: bytes) -> None:
        is_accepted = False
        while True:
            try:
                news = await call.next_news()
            except TimeoutError:
                self._forwarder.caller.cancel(call)
                stage = "waiting for a replica" if call.peer is None else "before the handler accepted"
                await _deny(send, answer_timeout(call.limit_s, stage))
                return
            kind = news[0]
            if kind == "event":
                message, cost = news[1], news[2]
                # the time limit is for the answer to the handshake
                call.deadline = None
                is_accepted = is_accepted or message["type"] == "websocket.accept"
                await send(_for_client(message, request_id))
                if call.peer is not None:
                    call.peer.grant(call, cost)
                if message["type"] == "websocket.close":
                    return
            elif kind == "close":
                if call.peer is not None:
                    call.peer.send_event(call, {"type": "websocket.disconnect", "code": news[1]}, 0)
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
                await _deny(send, _answer_of(news))
                return


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


class _Credit:
    """What the replica still takes of the client's messages."""

    def __init__(self, call: ForwardedCall) -> None:
        self.left = 0
        self.granted = asyncio.Event()
        self.call = call
        call.stream = self  # type: ignore[assignment]

    def add_credit(self, size: int) -> None:
        self.left += size
        if self.left > 0:
            self.granted.set()


async def _read(receive: Receive, call: ForwardedCall, credit: _Credit) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            continue
        if message["type"] == "websocket.disconnect":
            if call.peer is not None:
                call.peer.send_event(call, {"type": "websocket.disconnect", "code": message.get("code", 1005)}, 0)
            call.tell("disconnect")
            return
        while credit.left <= 0:
            credit.granted.clear()
            await credit.granted.wait()
        data = message.get("bytes")
        size = (len(data) if data is not None else len(message.get("text") or "")) + _EVENT_COST_BYTES
        credit.left -= size
        if call.peer is not None:
            call.peer.send_event(call, message, size)


def _for_client(message: dict[str, Any], request_id: bytes) -> dict[str, Any]:
    if message["type"] == "websocket.accept":
        headers = [tuple(pair) for pair in message.get("headers", ())]
        return {**message, "headers": [*headers, (b"x-request-id", request_id)]}
    if "headers" in message:
        return {**message, "headers": [tuple(pair) for pair in message["headers"]]}
    return message


def _answer_of(news: tuple[Any, ...]) -> Answer:
    if news[0] == "answer":
        answer: Answer = news[1]
        return answer
    if news[0] == "failure":
        return answer_failure(news[1])
    return answer_failure(RuntimeError("the WebSocket's handler ended before it accepted"))


async def _deny(send: Send, answer: Answer) -> None:
    status, block, body = answer
    headers = [*response_headers(block, None), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
