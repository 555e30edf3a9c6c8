"""The controller's line to the daemon: listening sockets, exits of orphans, the order to stop."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from servd.exceptions import HostLimitError, ListenError, ServdError
from servd.ground.host_limits import no_descriptor
from servd.wire.codec import RecordReader, record
from servd.wire.daemon_messages import (
    CloseListeners,
    ControllerUp,
    InstanceServing,
    ListenersOpened,
    OpenListeners,
    OrphanExited,
    PrepareUpgrade,
    Reload,
    Reloaded,
    SocketsMoved,
    StopController,
    Upgrade,
    Upgraded,
    UpgradePrepared,
)

_MAX_FDS = 253
_PREPARE_LIMIT_S = 5.0

logger = logging.getLogger(__name__)


class DaemonChannel:
    """Speaks to the daemon over the socket that the controller was started with.

    Args:
        on_orphan: called with each exit of a process that had become the daemon's child.
        on_stop: called with the time-out, seconds, when the daemon wants the controller to end.
        on_gone: called when the daemon is gone.
        on_reload: called when the token and the certificates shall be read again.
        on_moved: called with the control endpoint's and the admin API's socket when they were bound anew.
        on_upgraded: called when the daemon says that it became another edition, or could not.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: socket.socket,
        on_orphan: Callable[[OrphanExited], None],
        on_stop: Callable[[float], None],
        on_gone: Callable[[], None],
        on_reload: Callable[[], None] | None = None,
        on_moved: Callable[[socket.socket, socket.socket], None] | None = None,
        on_upgraded: Callable[[Upgraded], None] | None = None,
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._on_orphan = on_orphan
        self._on_stop = on_stop
        self._on_gone = on_gone
        self._on_reload = on_reload
        self._on_moved = on_moved
        self._on_upgraded = on_upgraded
        self._prepared = asyncio.Event()
        self._records = RecordReader()
        self._fds: list[int] = []
        self._asked: dict[int, asyncio.Future[ListenersOpened]] = {}
        self._open: dict[tuple[str, int], list[socket.socket]] = {}
        self._next_request = 1
        channel.setblocking(False)
        loop.add_reader(channel.fileno(), self._readable)

    def __repr__(self) -> str:
        return f"DaemonChannel(open={sorted(self._open)})"

    async def open_listeners(self, host: str, port: int, slots: int) -> list[socket.socket]:
        """Listening sockets of an address in slot order; the daemon has them for the next controller too.

        Raises:
            ListenError: why the address cannot be used.
            HostLimitError: there is no descriptor for them.
        """
        known = self._open.get((host, port), [])
        if len(known) >= slots:
            return known[:slots]
        request_id = self._next_request
        self._next_request += 1
        future: asyncio.Future[ListenersOpened] = self._loop.create_future()
        self._asked[request_id] = future
        self._send(OpenListeners(request_id, host, port, slots))
        answer = await future
        if answer.error:
            raise ListenError(host, port, answer.error, "--http-port")
        found = self._open[(host, port)][:slots]
        if len(found) < slots:
            # the kernel drops what there is no descriptor for
            raise HostLimitError(f"a listening socket did not arrive: {no_descriptor()}")
        return found

    def close_listeners(self, host: str, port: int) -> None:
        """Give an address up: here and in the daemon."""
        for listener in self._open.pop((host, port), []):
            listener.close()
        self._send(CloseListeners(host, port))

    def tell(self, news: InstanceServing | Reloaded | ControllerUp) -> None:
        """Send news: for the service manager, or that this controller does its work."""
        self._send(news)

    async def prepare_upgrade(self, edition: str, place: str) -> bool:
        """Tell the daemon what it shall become; False if it is too old to become anything."""
        self._prepared.clear()
        self._send(PrepareUpgrade(edition, place))
        try:
            await asyncio.wait_for(self._prepared.wait(), _PREPARE_LIMIT_S)
        except TimeoutError:
            return False
        return True

    def upgrade(self) -> None:
        """Let the daemon become what was prepared: it ends this process first."""
        self._send(Upgrade())

    def _send(self, message: Any) -> None:
        try:
            self._channel.sendall(record(message))
        except OSError as error:
            logger.error("daemon_unreachable message=%s reason=%s", type(message).__name__, error)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, 65536, _MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            self._on_gone()
            return
        # the kernel never joins bytes across a set of descriptors: they belong to the record that ends here
        self._fds += fds
        try:
            messages = self._records.feed(data)
        except ServdError:
            logger.exception("daemon_channel_broken")
            self._on_gone()
            return
        for message in messages:
            self._received(message)

    def _received(self, message: Any) -> None:
        match message:
            case ListenersOpened():
                self._opened(message)
            case OrphanExited():
                self._on_orphan(message)
            case StopController():
                self._on_stop(message.timeout_s)
            case UpgradePrepared():
                self._prepared.set()
            case Upgraded() if self._on_upgraded is not None:
                self._on_upgraded(message)
            case Reload() if self._on_reload is not None:
                self._on_reload()
            case SocketsMoved() if self._on_moved is not None:
                fds, self._fds = self._fds, []
                control, admin = (socket.socket(fileno=fd) for fd in fds)
                self._on_moved(control, admin)

    def _opened(self, answer: ListenersOpened) -> None:
        fds, self._fds = self._fds, []
        if not answer.error:
            for old in self._open.pop((answer.host, answer.port), []):
                old.close()
            self._open[(answer.host, answer.port)] = [socket.socket(fileno=fd) for fd in fds]
        future = self._asked.pop(answer.request_id, None)
        if future is not None and not future.done():
            future.set_result(answer)
