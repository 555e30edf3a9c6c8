"""One caller as a replica's server sees it: its open requests, and what it knows of them."""

from typing import TYPE_CHECKING, Any

from servd.replica.exchange import HttpExchange
from servd.replica.handle_call import HandleCall
from servd.wire.link import Peer, ReplicaLink
from servd.wire.records import ACCEPTED

if TYPE_CHECKING:
    from servd.replica.server import ReplicaServer


class CallerPeer(Peer):
    """One caller with its open requests.

    newest: id of the request accepted last; ids grow. newest_said: the same, as far as the caller knows. place: where the
    request begun last is noted for it.
    """

    __slots__ = ("newest", "newest_said", "open", "place", "server")

    def __init__(self, link: ReplicaLink, identity: bytes, server: "ReplicaServer") -> None:
        super().__init__(link, identity)
        self.server = server
        self.open: dict[int, HttpExchange | HandleCall] = {}
        self.newest = self.newest_said = 0
        self.place = 1

    def before_send(self) -> None:
        if self.newest == self.newest_said:
            return
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
        return self.server.admission.running - 1

    def finish_exchange(self, call_id: int, record: tuple[Any, ...]) -> None:
        """Send the last record of a call."""
        if self.open.pop(call_id, None) is not None:
            self.send(record)
