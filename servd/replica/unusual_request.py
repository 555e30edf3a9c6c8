"""What most requests of HTTP do not have: a body in frames or pieces, a time limit, a model, a trace."""

import asyncio
import contextvars
from typing import Any

from servd.calls import traced
from servd.replica.caller_peer import CallerPeer
from servd.replica.exchange import HttpExchange
from servd.wire.records import LENDS, LENT_BODY, STREAMED_BODY, TRACED, WEBSOCKET, body_of
from servd.wire.trace_context import TRACEPARENT, trace_put_in
from servd.wire.write_right import Given


def add_rest(
    peer: CallerPeer, exchange: HttpExchange, flags: int, extra: Any, frames: list[Any] | Given, limit: int
) -> contextvars.Context | None:
    """Take over what else the record of a request says. Gives the variables of the task that serves it, None for a copy of the
    current ones.

    Args:
        flags, extra: of the record.
        limit: requests that run at a time.
    """
    context, scope = exchange.context, exchange.scope
    is_usual = flags & ~LENDS == TRACED and extra is None and type(exchange.body) is bytes
    if not is_usual or isinstance(frames, Given):
        _add_more(peer, exchange, flags, extra, frames, limit)
    if flags & TRACED and (trace := trace_put_in(scope["headers"])) is not None:
        about = {"http.request.method": scope.get("method"), "http.route": context.route}
        exchange.context, variables = traced.begun(context, trace, "__call__", about)
        if exchange.context.trace != trace:
            # a framework that goes by the header would put its spans beside the one that runs, not below
            own = (TRACEPARENT, exchange.context.trace.traceparent.encode())
            scope["headers"] = [own if pair[0] == TRACEPARENT else pair for pair in scope["headers"]]
        return variables
    return None


def _add_more(
    peer: CallerPeer, exchange: HttpExchange, flags: int, extra: Any, frames: list[Any] | Given, limit: int
) -> None:
    context, scope = exchange.context, exchange.scope
    # applications and their parsers take bytes, not views
    if isinstance(frames, Given):
        if (given := frames.take(exchange.call_id)) is not None:
            exchange.lend(given)
        frames = []
    exchange.body = bytes(body_of(exchange.body, frames))
    if extra is not None:
        left, context.multiplexed_model_id, subprotocols = extra
        if left is not None:
            context.deadline = asyncio.get_running_loop().time() + left
        if flags & WEBSOCKET:
            scope["type"] = "websocket"
            scope["subprotocols"] = list(subprotocols)
            # frameworks look by it for a handler of HTTP
            del scope["method"]
            scope["extensions"] = {"websocket.http.response": {}}
    exchange.narrow(flags)
    if flags & (STREAMED_BODY | WEBSOCKET):
        exchange.expect_events(bool(flags & LENT_BODY))
    peer.note_body(flags, len(exchange.body), limit)
