"""Takes WebSockets whose connections were handed over. What runs them is loaded with the first: most replicas have none."""

import importlib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from servd.replica.caller_peer import CallerPeer
from servd.replica.exchange import HttpExchange
from servd.wire.records import EVENT, RESTARTING, RETURNED

_WEBSOCKET = "servd.replica.websocket"

logger = logging.getLogger(__name__)


class Admission(Protocol):
    """What is asked of the replica's admission."""

    running: int


class Server(Protocol):
    """What is asked of the replica's server."""

    @property
    def admission(self) -> Any:
        """An `Admission`."""
        ...

    def admit(self, peer: CallerPeer, record: tuple[Any, ...]) -> bool:
        """Whether there is a slot for a request, which has it then."""
        ...

    def release(self) -> None:
        """It has ended."""
        ...

    def on_http(
        self, peer: CallerPeer, record: tuple[Any, ...], frames: list[Any], make: Callable[..., HttpExchange]
    ) -> None:
        """Serve a request."""
        ...


def start_websocket(server: Server, peer: CallerPeer, record: tuple[Any, ...]) -> None:
    """Serve it, if there is a slot; where its connection is not there, or cannot be used, the caller has it back."""
    make = None
    if peer.door.has_body(peer.key, record[1]):
        make = _exchange_class()
        peer.door.takes_websockets = make is not None
    if make is not None:
        server.on_http(peer, record[:12], [], partial(make, pings=record[12]))
    elif server.admit(peer, record):
        # a slot may have been held for it
        server.release()
        peer.door.refuse(peer.key, record[1])
        peer.send((RETURNED, record[1], server.admission.running))


def _exchange_class() -> Callable[..., HttpExchange] | None:
    try:
        found: Callable[..., HttpExchange] = importlib.import_module(_WEBSOCKET).WebSocketExchange
    # applications bring releases of the library of their own
    except (ImportError, AttributeError) as error:
        logger.warning("websockets_not_loaded reason=%s: they go through the proxy", error)
        return None
    return found


def restart_websockets(peers: Iterable[CallerPeer]) -> bool:
    """Close those that are open, since their replica ends; whether there was one."""
    found = [(peer, *one) for peer in peers for one in _websockets(peer)]
    for peer, call_id, exchange in found:
        if not exchange.outlives_handler:
            peer.send((EVENT, call_id, {"type": "websocket.close", "code": RESTARTING}, 0))
        exchange.feed_event({"type": "websocket.disconnect", "code": RESTARTING, "reason": ""}, 0)
    return bool(found)


def cut_websockets(peers: Iterable[CallerPeer]) -> None:
    """Close the connections that are left."""
    for peer in peers:
        for _, exchange in _websockets(peer):
            exchange.cut()


def _websockets(peer: CallerPeer) -> list[tuple[int, HttpExchange]]:
    return [
        (call_id, work)
        for call_id, work in peer.open.items()
        if isinstance(work, HttpExchange) and work.scope["type"] == "websocket" and work.has_begun
    ]
