"""What a caller sends: the common part of HTTP requests and handle calls, and the handle call itself."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Protocol

from servd.calls.affinity import prompt_of_arguments
from servd.calls.arguments import Arguments
from servd.calls.circles import circle
from servd.calls.failures import TimeLimitError
from servd.calls.request_context import RequestContext
from servd.calls.request_router import RequestRouter
from servd.calls.routes.patterns import packed_route
from servd.calls.routing_rules import Rule
from servd.exceptions import RemoteFailure, RequestCancelledError, ServdError
from servd.wire.caller_link import CallerLink
from servd.wire.records import BEYOND, CALL, CREDIT_BYTES, STREAM, Outbox

_GRANT_BYTES = CREDIT_BYTES // 4
_NO_ITEMS: deque[tuple[list[Any], int]] = deque(maxlen=0)


class Target(Protocol):
    """Where a request was sent: what it asks of a `ReplicaPeer`."""

    link: CallerLink
    replica_id: str
    pending: "dict[int, Outgoing]"
    is_greeted: bool
    takes_websockets: bool

    @property
    def takes_connections(self) -> bool:
        """Whether a client's connection may go with the request that is about to be sent."""
        ...

    def grant(self, call: "Outgoing", size: int) -> None:
        """The reader of a call's answer took `size` bytes."""
        ...

    def send_body(self, call: "Outgoing", data: Any, more: bool) -> None:
        """Send a piece of a request body."""
        ...

    def send_event(self, call: "Outgoing", message: dict[str, Any], cost: int) -> None:
        """Send a message of a WebSocket's client."""
        ...

    def lend(self, call: "Outgoing", descriptor: int, left: int | None) -> bool:
        """Let the replica write the body, of which so many bytes are left (None: in chunks), to this socket; False: it cannot be
        told."""
        ...

    def lend_body(self, call: "Outgoing", descriptor: int, left: int, *, is_sure: bool) -> bool:
        """Let the replica read what is left of a request's body from this socket, before the request is sent; False: it is not
        told."""
        ...

    def hand_over(self, call: "Outgoing", descriptor: int) -> bool:
        """Give the replica the connection of a WebSocket, before the request is sent; False: it does not take it, now or at
        all."""
        ...

    def unsend(self, call: "Outgoing") -> None:
        """Nothing of a request was sent, and nothing is to come of it."""
        ...

    def keep(self, call: "Outgoing") -> None:
        """Do not let it: the body shall come as records."""
        ...


class Outgoing:
    """One request on its way to a replica: what the `Caller` knows of it, and what it tells it.

    An HTTP connection is one itself: it has one request at a time, and a new object for each would cost more than it is worth.

    Attributes:
        number: grows with each request of the caller; 0 = nothing under way.
        call_id: id at the replica it was last sent to.
        peer: where it was sent; None while it waits.
        is_idempotent: may be repeated after a replica accepted it and died.
        has_begun: a part of the answer arrived.
        was_granted: a byte of a streamed body was granted.
        has_waited: it was sent out of the waiting line, and keeps its right to wait if it comes back.
        waits_since: when it was put into the waiting line, by the caller's clock; only while it waits.
    """

    __slots__ = (
        "call_id",
        "has_begun",
        "has_waited",
        "is_accepted",
        "is_idempotent",
        "model_id",
        "number",
        "peer",
        "retries",
        "router",
        "waits_since",
        "was_granted",
    )

    number: int
    call_id: int
    peer: Target | None
    router: "RequestRouter[Outgoing]"
    is_accepted: bool
    is_idempotent: bool
    has_begun: bool
    was_granted: bool
    has_waited: bool
    waits_since: float
    retries: int
    model_id: str

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        """The request as a record; asked again each time it is sent."""
        raise NotImplementedError

    def _grant_bytes(self, size: int) -> None:
        """There is room for so many bytes more of the answer."""
        if size and self.peer is not None:
            self.peer.grant(self, size)

    def affinity(self, rule: Rule) -> str:  # noqa: ARG002
        """What a rule goes by, "" where the request has nothing of it; asked each time a replica is chosen by one."""
        return ""

    def is_abandoned(self) -> bool:
        """Whether nobody waits for the answer any more, so that it shall not begin; asked when a slot is there after a wait. It
        is told nothing then."""
        return False

    def on_response(self, status: int, block: bytes, body: bytes) -> None:
        """A whole HTTP response: status (negative: the connection shall end after it), header lines, body."""

    def on_head(self, status: int, block: bytes) -> None:
        """The head of a response that streams; status as in `on_response`."""

    def on_piece(self, data: bytes) -> None:
        """A piece of a streamed response; grant credit as it is taken."""

    def on_ask(self) -> None:
        """The replica would like to write the body to the client itself; answer with `lend` or `keep`."""

    def on_back(self, size: int) -> None:
        """The replica writes no more to the client, and has written so many bytes of the body."""

    def on_wrote(self, status: int, size: int, left: int | None) -> None:
        """The replica has written to the client itself, which was lent to it with the request, and writes no more.

        Args:
            size: bytes of the body that it has written, behind the head. left: that are not written; None = it goes in chunks.
        """

    def on_taken(self, size: int) -> None:
        """The replica reads no more of a body that was lent with the request, and has taken so many bytes."""

    def on_returned(self) -> None:
        """The connection of a WebSocket did not arrive at the replica, which has begun nothing."""

    def on_lost(self, *, may_live: bool) -> None:
        """The link to the replica is lost. may_live: its process may live on, so it may still begin, and use what it was lent."""

    def on_end(self, error: str | None) -> None:
        """End of a streamed response; `error`: it was broken off."""

    def on_reply(self, succeeded: bool, parts: list[Any]) -> None:
        """End of a handle call."""

    def on_item(self, parts: list[Any], cost: int) -> None:
        """One item of a streaming handle call."""

    def on_event(self, message: dict[str, Any], cost: int) -> None:
        """A message of the application to a WebSocket."""

    def on_credit(self, size: int) -> None:
        """`size` further bytes of the request body may be sent."""

    def on_parts(self) -> None:
        """The replica takes messages of a WebSocket's client in parts."""

    def on_failure(self, error: Exception) -> None:
        """The request failed: refused, or its replica died."""


class CallTicket(Outgoing):
    """A handle call: await it for the parts of the result, or iterate over the parts of its items.

    context: of the request that it is made for. said: what a router may go by: the session, or that and
    the arguments, of which a rule may want the text.

    Raises (from awaiting and iterating):
        RemoteFailure: the called code raised.
        RequestError: it could not be served.
        TimeoutError: its deadline passed.
    """

    __slots__ = (
        "_cancel",
        "_deadline",
        "_done",
        "_items",
        "_loop",
        "_method",
        "_on_sent",
        "_parts",
        "_said",
        "_stream",
        "_taken",
        "_timer",
        "_waiter",
        "context",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cancel: Any,
        method: str,
        parts: list[Any],
        context: RequestContext,
        stream: bool,
        model_id: str,
        deadline: float | None,
        said: str | tuple[str, Arguments] = "",
    ) -> None:
        self._loop = loop
        self._cancel = cancel
        self._method = method
        self._parts = parts
        self._said = said
        self.context = context
        self._stream = stream
        self._deadline = deadline
        self._done: asyncio.Future[list[Any]] = loop.create_future()
        self._items: deque[tuple[list[Any], int]] = deque() if stream else _NO_ITEMS
        self._waiter: asyncio.Future[None] | None = None
        self._taken = 0
        self._timer: asyncio.TimerHandle | None = None
        self._on_sent: Callable[[], None] | None = None
        self.model_id = model_id
        self.is_idempotent = False
        if deadline is not None:
            self._timer = loop.call_at(deadline, self._time_out, context.deadline is not None)

    def __repr__(self) -> str:
        return f"CallTicket({self._method}{', done' if self._done.done() else ''})"

    def __await__(self) -> Generator[Any, None, list[Any]]:
        try:
            return (yield from self._done)
        except asyncio.CancelledError:
            # the cancellation of who waits has cancelled the future already, so `cancel` would find it done
            self._take_back()
            raise

    async def __aiter__(self) -> AsyncIterator[list[Any]]:
        try:
            while True:
                while self._items:
                    parts, cost = self._items.popleft()
                    self._take(cost)
                    yield parts
                if self._done.done():
                    self._done.result()
                    return
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Take the call back, best effort. Nothing happens when it has ended."""
        if not self._done.done():
            self._take_back()
            self._finish(RequestCancelledError("the call was cancelled"))

    def when_sent(self, told: Callable[[], None]) -> None:
        """Call `told` once a replica is chosen; at once if one is."""
        if self.peer is not None:
            told()
        else:
            self._on_sent = told

    def _take_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._cancel(self)

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        context = self.context
        left = None if self._deadline is None else self._deadline - self._loop.time()
        pattern = context.pattern
        about = (
            context.request_id,
            packed_route(context.route, pattern) if pattern else context.route,
            context.app_name,
            self.model_id,
            left,
            context.depth,
            context.ancestors,
        )
        if self._stream:
            flags |= STREAM
        if self._on_sent is not None:
            self._on_sent()
        return (CALL, call_id, flags, self._method, outbox.attach_all(self._parts), about)

    def affinity(self, rule: Rule) -> str:
        if not isinstance(self._said, str):
            session_id, arguments = self._said
            self._said = prompt_of_arguments(*arguments) if rule.reads_text else session_id
        return self._said

    def on_reply(self, succeeded: bool, parts: list[Any]) -> None:
        self._finish(parts if succeeded else RemoteFailure(parts))

    def on_item(self, parts: list[Any], cost: int) -> None:
        self._items.append((parts, cost))
        self._wake()

    def on_failure(self, error: Exception) -> None:
        self._finish(error)

    def _finish(self, result: list[Any] | Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
        done = self._done
        if done.done():
            return
        if isinstance(result, Exception):
            done.set_exception(result)
            # a call nobody waits for any more is no news for the log
            done.exception()
        else:
            done.set_result(result)
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self, cost: int) -> None:
        self._taken += cost
        if self._taken >= _GRANT_BYTES and self.peer is not None:
            self.peer.grant(self, self._taken)
            self._taken = 0

    def _time_out(self, is_requests: bool) -> None:
        """The limit has passed. is_requests: it was that of the request, which is lifted when the request is answered in time."""
        if is_requests and self.context.deadline is None:
            return
        if not self._done.done():
            where = "waiting for a replica" if self.peer is None else "in the called code"
            self._cancel(self)
            kind = TimeLimitError if is_requests else TimeoutError
            self._finish(kind(f"the time limit of the request passed {where} ({self._method})"))


class BroadcastTicket(CallTicket):
    """A handle call that goes to one replica, however much that has to do."""

    __slots__ = ()

    def record(self, call_id: int, flags: int, outbox: Outbox) -> tuple[Any, ...]:
        """As of any call, with the mark that no slot is needed."""
        return super().record(call_id, flags | BEYOND, outbox)


def circle_of(call: Outgoing) -> ServdError | None:
    """Why the call can never run, None if it may: those it is made for hold every slot of its deployment."""
    if not isinstance(call, CallTicket) or not call.context.ancestors:
        return None
    router = call.router
    if router.targets.may_grow:
        return None
    return circle(router.deployment, router.limits(), call.context.ancestors)
