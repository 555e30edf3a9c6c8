"""One caller as a replica's server sees it: its open requests, and what it knows of them."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from servd.calls.request_context import RequestContext
from servd.ground.edition import difference, edition_of
from servd.wire.began import BeganLog
from servd.wire.body_loan import LENT_BODY_BYTES
from servd.wire.lending import LendingDoor
from servd.wire.link import Peer, ReplicaLink
from servd.wire.records import (
    ACCEPTED,
    LENDS,
    LENT_BODY,
    LIMIT,
    LINE,
    REFUSED,
    REJECTED,
    ROUTES,
    STREAMED_BODY,
    WEBSOCKET,
)

logger = logging.getLogger(__name__)


class Work(Protocol):
    """An open request as its peer and the server hold it: an `HttpExchange` or a `HandleCall`."""

    task: "asyncio.Task[None] | None"
    has_started: bool
    context: RequestContext

    def add_credit(self, size: int) -> None:
        """The caller took `size` bytes of the answer."""
        ...

    def disconnect(self) -> None:
        """The caller is gone, and the handler is about to be cancelled."""
        ...

    def let_go(self) -> None:
        """The caller is gone, and the handler shall complete all the same: what it sends is dropped."""
        ...


class Admission(Protocol):
    """What a peer asks of the replica's `admission.Admission`."""

    running: int


class CallerPeer(Peer):
    """One caller with its open requests.

    newest: id of the request accepted last; ids grow. newest_said: the same, as far as the caller knows. place: where the
    request begun last is noted for it. key: it says so with what it lends. door: where it lends. is_refused: it speaks another
    protocol, and nothing more of it is read.
    """

    __slots__ = ("admission", "door", "is_refused", "key", "newest", "newest_said", "open", "place")

    def __init__(self, link: ReplicaLink, identity: bytes, admission: Admission, door: LendingDoor) -> None:
        super().__init__(link, identity)
        self.admission = admission
        self.door = door
        self.key = 0
        self.open: dict[int, Work] = {}
        self.newest = self.newest_said = 0
        self.place = 1
        self.is_refused = False

    def greet(
        self, began: BeganLog, limit: int, routes: tuple[Any, ...], key: int, edition: str = "", asks: bool = False
    ) -> None:
        """Answer its HELLO.

        Args:
            began: where it reads which requests have begun, by its `key`.
            limit: requests that run at a time.
            routes: of the application, described.
            edition: "" of a caller of before editions.
            asks: it asks for the routes.
        """
        if reason := difference(edition_of(edition)):
            self.is_refused = True
            self.send((REFUSED, reason))
            logger.warning("caller_refused reason=%s", reason)
            return
        self.key = key
        self.place = began.open_place(key)
        self.send((LIMIT, limit, False, True) if self._takes_websockets else (LIMIT, limit))
        if asks and routes:
            self.send((ROUTES, 0, routes))

    def note_body(self, flags: int, size: int, limit: int) -> None:
        """Where the caller has sent a large body itself that it could have lent, or a WebSocket, tell it that it may do so."""
        is_large = flags & STREAMED_BODY or size >= LENT_BODY_BYTES
        if is_large and flags & LENDS and not flags & LENT_BODY and self.key and self.door.open():
            self.send((LIMIT, limit, True))
        if flags & WEBSOCKET and not flags & LENT_BODY and self._takes_websockets:
            # somebody has removed the door, and it was made again
            self.send((LIMIT, limit, False, True))

    @property
    def _takes_websockets(self) -> bool:
        return self.key > 0 and self.door.takes_websockets and self.door.open()

    def reject(self, record: tuple[Any, ...], running: int, is_leaving: bool) -> None:
        """Tell the caller that a request is not served."""
        if record[2] & LENT_BODY:
            self.door.refuse(self.key, record[1])
        self.send((REJECTED, record[1], running, is_leaving))

    def before_send(self) -> None:
        if self.newest == self.newest_said:
            return
        if not self.newest_said and self.key and self.door.open():
            # its first requests: who has none needs no line
            self.outbox.records.append((LINE, 0))
        # what is answered in the same envelope is not open any more
        unsaid = []
        for call_id in reversed(self.open):
            if call_id <= self.newest_said:
                break
            unsaid.append(call_id)
        self.newest_said = self.newest
        if unsaid:
            self.outbox.records.append((ACCEPTED, unsaid))

    def ongoing_after(self) -> int:
        """Requests that run when the one that ends now is not counted."""
        return self.admission.running - 1

    def cancel(self, call_id: int, work: Work, take_back_calls: Callable[[RequestContext], None] | None) -> None:
        """The caller took a request back. take_back_calls: ends the calls that it has made; None: it goes on to its end."""
        del self.open[call_id]
        if work.task is None:
            return
        if take_back_calls is None:
            work.let_go()
            return
        work.disconnect()
        # a task cancelled before its first step would never come to its `finally`: it looks for itself then
        if work.has_started:
            # whatever the handler makes of its cancellation, the calls that it has made end now
            work.context.cancellations += 1
            take_back_calls(work.context)
            work.task.cancel()

    def finish_exchange(self, call_id: int, record: tuple[Any, ...]) -> None:
        """Send the last record of a call."""
        if self.open.pop(call_id, None) is not None:
            self.send(record)


def add_line(callers: Callable[[], Iterable[CallerPeer]], key: int, line: socket.socket) -> None:
    """The caller of this key has opened a line for envelopes."""
    for peer in callers():
        if peer.key == key:
            peer.link.add_line(peer, line)
            return
    line.close()
