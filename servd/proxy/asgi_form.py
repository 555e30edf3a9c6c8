"""The forwarder as an ASGI application, for connections that are not HTTP/1.1: what HTTP and WebSockets have in common."""

from typing import Any

from servd.proxy.app_queue import AppQueue
from servd.proxy.forwarded_call import ForwardedCall, NotedSend, Send
from servd.proxy.forwarded_for import NOTHING_SAID, Said, joined, scheme_for, with_host
from servd.proxy.forwarder import Forwarder
from servd.proxy.probes import Answer
from servd.wire.connection_room import Share
from servd.wire.http_answers import REQUEST_ID
from servd.wire.records import origin
from servd.wire.trace_context import TRACEPARENT, trace_in, with_trace


class AsgiForm:
    """Forwards one request or WebSocket per call."""

    noted: type[NotedSend] = NotedSend

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._loop = forwarder.loop

    async def __call__(self, scope: dict[str, Any], queue: AppQueue, send: Send, share: Share) -> None:
        """Forward what this scope stands for. share: of what its connection may hold.

        Raises:
            ConnectionAbortedError: the response was broken off after it had begun.
        """
        forwarder = self._forwarder
        path, headers = scope["raw_path"], dict(scope["headers"])
        request_id = forwarder.request_id(headers.get(REQUEST_ID))
        target = forwarder.resolve(path)
        traced, begins = None, forwarder.traces.begins()
        if begins or TRACEPARENT in headers:
            about = (request_id, trace_in(scope["headers"]), scope.get("method", "WEBSOCKET"), target)
            traced = forwarder.traced(*about, began=forwarder.journal.now(), begins=begins)
            request_id = request_id if traced is None else traced
        if target is None:
            asked = {**scope, "client": self._said(scope).client or scope["client"]}
            noted = self.noted(forwarder, asked, forwarder.labels_of_unrouted(path), request_id, send)
            with noted:
                await self.answer(noted, forwarder.answer_unrouted(path, scope["query_string"]))
            return
        call = ForwardedCall(self._loop, forwarder.journal.now, scope, target, share)
        call.traced = traced
        call.model_id = headers.get(b"serve_multiplexed_model_id", b"").decode("latin-1")
        limit_s = forwarder.time_limit(target, headers.get(b"x-request-timeout-seconds"))
        if limit_s is not None:
            call.limit_s = limit_s
            call.deadline = self._loop.time() + limit_s
        noted = self.noted(forwarder, scope, target.labels, request_id, send, call)
        with noted:
            await self.forward(call, queue, noted)

    def tail(self, call: ForwardedCall, body: bytes | bytearray, request_id: bytes) -> tuple[Any, ...]:
        """What `ForwardedCall.prepare` wants."""
        scope = call.scope
        lowered = [(name.lower(), value) for name, value in scope["headers"]]
        # the replica puts the one that counts there
        headers = [pair for pair in lowered if pair[0] != REQUEST_ID]
        said = self._said(scope)
        call.client = said.client or scope["client"]
        source = origin(
            call.client,
            scope["server"],
            scheme_for(said.scheme, scope["scheme"]),
            scope["http_version"],
            self._forwarder.table.root_path,
        )
        headers = with_host(headers, said.host)
        if call.traced is not None:
            headers = with_trace(headers, call.traced.trace)
        method = scope.get("method", "GET")
        query = scope["query_string"]
        return (method, scope["raw_path"], query, headers, body, request_id.decode(), call.target.prefix, source)

    def _said(self, scope: dict[str, Any]) -> Said:
        """What a trusted proxy in front says of the client."""
        trusted = self._forwarder.trusted
        if not trusted.trusts(scope["client"]):
            return NOTHING_SAID
        return trusted.said(joined([(name.lower(), value) for name, value in scope["headers"]]))

    async def answer(self, send: NotedSend, answer: Answer) -> None:
        """Send an answer of the proxy's own."""
        raise NotImplementedError

    async def forward(self, call: ForwardedCall, queue: AppQueue, send: NotedSend) -> None:
        """Send it on and the answer back, to the end."""
        raise NotImplementedError
