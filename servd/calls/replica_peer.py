"""One replica as a caller sees it: the link, the requests that are there, and what each of its records means to them."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from servd.calls.outgoing import Outgoing
from servd.calls.request_router import RequestRouter
from servd.calls.routing_rules import Candidate
from servd.ground.edition import own_edition
from servd.ground.ids import SYSTEM
from servd.ground.settings import is_on
from servd.wire.began import BeganReader
from servd.wire.caller_link import CallerLink, LinkWatch
from servd.wire.lending import LendingLine, Loan, line_for_envelopes
from servd.wire.records import (
    ACCEPTED,
    ASK,
    BACK,
    BODY,
    CREDIT,
    END,
    EVENT,
    HEAD,
    HELLO,
    INVITED,
    ITEM,
    KEEP,
    LIMIT,
    LINE,
    OFFER,
    REFUSED,
    REJECTED,
    REPLY,
    RESPONSE,
    RETURNED,
    ROUTES,
    TAKEN,
    WANT,
    WROTE,
    bodies_of,
    body_of,
)

USES_LINES = is_on("PACKET_LINES", "1")
"""Whether callers of this process open lines of packets; else all goes over ZeroMQ."""

_LENDING_IDLE_S = 10.0
"""After so long to twice as long without a loan the line for descriptors is closed: it is one for each replica."""

logger = logging.getLogger(__name__)

Router = RequestRouter[Outgoing]


class Owner(Protocol):
    """What a peer tells the `Caller` that it belongs to."""

    watch: LinkWatch
    on_routes: "Callable[[str, tuple[Any, ...]], None] | None"

    def on_offer(self, peer: "ReplicaPeer") -> None:
        """A replica holds a slot for the oldest waiting request."""
        ...

    def refuse_line(self, router: Router) -> None:
        """A replica said how many requests it takes at a time."""
        ...

    def on_rejected(self, peer: "ReplicaPeer", call_id: int, call: Outgoing | None, is_leaving: bool) -> None:
        """A replica did not take a request (None: taken back meanwhile)."""
        ...

    def on_lost(self, peer: "ReplicaPeer", reason: str) -> None:
        """A replica is gone, with everything that was there."""
        ...


class ReplicaPeer:
    """One replica as a caller sees it: its link and the requests that are there.

    told_id: id of the last request sent before the replica was last told how many wait. takes_bodies: it has said that bodies of
    requests may be lent to it. takes_websockets: and that WebSockets may be handed over to it. is_greeted: it has said all this.
    """

    __slots__ = (
        "_began",
        "_has_lent",
        "_idle_timer",
        "_is_invited",
        "_key",
        "_lending",
        "candidate",
        "is_greeted",
        "is_retired",
        "link",
        "owner",
        "pending",
        "replica_id",
        "router",
        "takes_bodies",
        "takes_websockets",
        "told_id",
    )

    def __init__(self, owner: Owner, router: Router, candidate: Candidate) -> None:
        self.owner = owner
        self.router = router
        self.candidate = candidate
        self.replica_id = candidate.replica_id
        self.pending: dict[int, Outgoing] = {}
        self.is_retired = self.is_greeted = self.takes_bodies = self.takes_websockets = self._is_invited = False
        self.told_id = 0
        key = SYSTEM.getrandbits(63) | 1
        # the link first: where there is no descriptor for it, nothing is left open
        self.link = CallerLink(owner.watch, candidate.address, self._on_records, self._on_lost)
        self._key = key
        self._began = BeganReader(candidate.address, key)
        self._lending: LendingLine | None = None
        self._has_lent = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self.link.send((HELLO, key, own_edition().text, owner.on_routes is not None))

    def __repr__(self) -> str:
        return f"ReplicaPeer({self.candidate}, pending={len(self.pending)})"

    def ask_for_offers(self, last_id: int) -> None:
        """Leave a ticket if requests wait, rather than send them all: the replica offers what is free.

        last_id: of the request that was sent last, to whichever replica.
        """
        if self.router.line:
            self.candidate.is_full = True
            self.told_id = last_id
            self.link.send((WANT, len(self.router.line)))

    def retire(self) -> None:
        """Close when the last request is answered."""
        self.is_retired = True
        if not self.pending:
            self.close()

    def close(self) -> None:
        """Close at once."""
        self.link.close()
        self._began.close()
        self._end_lending()

    def grant(self, call: Outgoing, size: int) -> None:
        """The reader of a call's answer took `size` bytes."""
        if call.call_id in self.pending:
            self.link.send((CREDIT, call.call_id, size))

    def send_body(self, call: Outgoing, data: Any, more: bool) -> None:
        """Send a piece of a request body."""
        if call.call_id in self.pending:
            link = self.link
            link.send((BODY, call.call_id, link.outbox.attach(data), more))

    def send_event(self, call: Outgoing, message: dict[str, Any], cost: int) -> None:
        """Send a message of a WebSocket's client."""
        if call.call_id in self.pending:
            self.link.send((EVENT, call.call_id, message, cost))

    def lend(self, call: Outgoing, descriptor: int, left: int | None) -> bool:
        """Let the replica write the body of a call's answer to this socket; False: it cannot be told now.

        Args:
            left: bytes of the body; None = it goes in chunks.
        """
        return call.call_id in self.pending and self._lend(Loan(self._key, call.call_id, left), descriptor)

    def lend_body(self, call: Outgoing, descriptor: int, left: int, *, is_sure: bool) -> bool:
        """Let the replica read what is left of the body of a request, whose record is about to be sent, from this socket; False:
        it cannot be told now, or would not serve the request by its last word.

        Args:
            left: bytes of the body.
            is_sure: it holds a slot for the request.
        """
        candidate = self.candidate
        if not self.takes_bodies or (not is_sure and candidate.load > candidate.limit):
            return False
        # where it has closed its door it says so again once it has opened it
        self.takes_bodies = self._lend(Loan(self._key, call.call_id, left, is_request=True), descriptor)
        return self.takes_bodies

    @property
    def takes_connections(self) -> bool:
        """A client's connection may go with the request that is about to be sent."""
        return self._is_invited and self.link.takes_descriptors

    def hand_over(self, call: Outgoing, descriptor: int) -> bool:
        """Give the replica the connection of a WebSocket, whose record is about to be sent; False: it does not take it, or, where
        `takes_websockets` goes on, cannot be told now."""
        if not self.takes_websockets:
            return False
        if self._lend(Loan(self._key, call.call_id, 0, is_request=True), descriptor):
            return True
        self.takes_websockets = self._lending is not None and self._lending.is_open
        return False

    def unsend(self, call: Outgoing) -> None:
        """Nothing of a request was sent, and nothing is to come of it."""
        if self.pending.pop(call.call_id, None) is not None:
            self.candidate.load -= 1
            if self.is_retired and not self.pending:
                self.close()

    def _lend(self, loan: Loan, descriptor: int) -> bool:
        if self._lending is None:
            self._lending = LendingLine(self.candidate.address)
        self._has_lent = True
        if self._idle_timer is None:
            self._look_at_line_later()
        return self._lending.lend(loan, descriptor)

    def _look_at_line_later(self) -> None:
        self._idle_timer = self.owner.watch.loop.call_later(_LENDING_IDLE_S, self._look_at_line)

    def _look_at_line(self) -> None:
        self._idle_timer = None
        if self._has_lent:
            self._has_lent = False
            self._look_at_line_later()
        else:
            self._end_lending()

    def keep(self, call: Outgoing) -> None:
        """Tell the replica to send the body of a call's answer."""
        if call.call_id in self.pending:
            self.link.send((KEEP, call.call_id))

    def _end_lending(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._lending is not None:
            self._lending.close()
            self._lending = None

    def _on_records(self, records: list[Any], frames: list[Any]) -> None:
        pending = self.pending
        candidate = self.candidate
        for record in records[1:]:
            try:
                kind = record[0]
                if kind == RESPONSE:
                    _, call_id, ongoing, status, block, body = record
                    candidate.load = ongoing
                    call = pending.pop(call_id, None)
                    if call is not None:
                        call.on_response(status, block, body if type(body) is bytes else body_of(body, frames))
                elif kind == REPLY:
                    _, call_id, candidate.load, succeeded, parts = record
                    call = pending.pop(call_id, None)
                    if call is not None:
                        call.on_reply(succeeded, bodies_of(parts, frames))
                else:
                    self._on_other(kind, record, frames)
            except Exception:
                # one callback must not cost the others their replies
                logger.exception("reply_callback_failed peer=%s", self)
        if self.is_retired and not pending:
            self.close()

    def _on_other(self, kind: int, record: tuple[Any, ...], frames: list[Any]) -> None:
        if kind == ACCEPTED:
            for call_id in record[1]:
                call = self.pending.get(call_id)
                if call is not None:
                    call.is_accepted = True
        elif kind == OFFER:
            self.candidate.load = record[1]
            self.owner.on_offer(self)
        elif kind == LIMIT:
            self.candidate.limit = record[1]
            self.is_greeted = True
            self.takes_bodies = self.takes_bodies or (len(record) > 2 and record[2])
            self.takes_websockets = self.takes_websockets or len(record) > 3
            self.owner.refuse_line(self.router)
        elif kind == ROUTES:
            if self.owner.on_routes is not None:
                self.owner.on_routes(self.router.deployment, record[2])
        elif kind == INVITED:
            self._is_invited = True
        elif kind == REFUSED:
            self._on_refused(record[1])
        elif kind == LINE:
            if USES_LINES:
                self.link.use_lines(partial(line_for_envelopes, self.candidate.address, self._key))
        elif kind in (END, REJECTED, RETURNED):
            self._on_last(kind, record)
        else:
            self._on_part(kind, record, frames)

    def _on_last(self, kind: int, record: tuple[Any, ...]) -> None:
        self.candidate.load = record[2]
        call = self.pending.pop(record[1], None)
        if kind == REJECTED:
            self.owner.on_rejected(self, record[1], call, record[3])
        elif kind == RETURNED:
            self.takes_websockets = False
            if call is not None:
                call.on_returned()
        elif call is not None:
            call.on_end(record[3])

    def _on_part(self, kind: int, record: tuple[Any, ...], frames: list[Any]) -> None:
        call = self.pending.get(record[1])
        if call is None:
            return
        call.is_accepted = True
        if kind == CREDIT:
            call.was_granted = True
            if len(record) > 3:
                # replicas of earlier editions say nothing of it
                call.on_parts()
            call.on_credit(record[2])
            return
        if kind == TAKEN:
            call.on_taken(record[2])
            return
        call.has_begun = True
        if kind == BODY:
            call.on_piece(body_of(record[2], frames))
        elif kind == HEAD:
            call.on_head(record[2], record[3])
        elif kind == ASK:
            call.on_ask()
        elif kind == BACK:
            call.on_back(record[2])
        elif kind == WROTE:
            call.on_wrote(*record[2:5])
        elif kind == ITEM:
            call.on_item(bodies_of(record[2], frames), record[3])
        elif kind == EVENT:
            call.on_event(record[2], record[3])
        else:
            logger.error("unknown_record kind=%s peer=%s", kind, self)

    def _on_refused(self, reason: str) -> None:
        """It speaks another protocol, and has taken nothing."""
        said = f"replica {self.candidate.replica_id} refuses this process: {reason}"
        if self.router.refused != said:
            logger.error("replica_refuses reason=%s", said)
            self.router.refused = said
        self.close()
        self.owner.on_lost(self, said)

    def _on_lost(self, reason: str) -> None:
        last = self._began.last_begun()
        # without a line nobody says that its process is dead
        may_live = self._lending is None or self._lending.is_open
        for call_id, call in self.pending.items():
            call.is_accepted = call.is_accepted or last is None or call_id <= last
            call.on_lost(may_live=may_live)
        self._began.close(is_dead=True)
        self._end_lending()
        self.owner.on_lost(self, reason)
