"""A child's line to the controller: connects, greets, reconnects for ever; level-based records both ways."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from servd.exceptions import ProtocolError
from servd.wire.codec import RecordReader, record
from servd.wire.messages import Hello, Refused

_FIRST_RETRY_S = 0.010
_LAST_RETRY_S = 0.100
_REFUSED_RETRY_S = 2.0
_MAX_UNSENT_BYTES = 4 * 1024 * 1024

logger = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class ControlLink:
    """Stays connected to the control endpoint while `run()` runs.

    All callbacks run on the loop of `run()`; so must every call of `send`. What is not sent while the
    controller is away is dropped: records are level-based, `on_connect` sends the present state again.

    Args:
        socket_path: the control endpoint (`settings.control_socket`).
        hello: gives the greeting, asked anew at each connection.
        on_message: called with each message of the controller.
        on_connect: called after the greeting was sent.
    """

    def __init__(
        self,
        socket_path: str,
        hello: Callable[[], Hello],
        on_message: Callable[[Any], None],
        on_connect: Callable[[], None] = _nothing,
    ) -> None:
        self._socket_path = socket_path
        self._hello = hello
        self._on_message = on_message
        self._on_connect = on_connect
        self._transport: asyncio.Transport | None = None
        self._refusal = ""

    def __repr__(self) -> str:
        return f"ControlLink({self._socket_path}, {'connected' if self.is_connected else 'away'})"

    @property
    def is_connected(self) -> bool:
        """The controller is there as far as known."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """Connected, and everything that was sent has left this process."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()

    def send(self, message: Any) -> bool:
        """Send one message; False when there is no controller, or it has stopped reading: dropped then."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            return False
        transport.write(record(message))
        return True

    async def run(self) -> None:
        """Connect and stay connected until cancelled."""
        loop = asyncio.get_running_loop()
        retry_s = _FIRST_RETRY_S
        while True:
            lost: asyncio.Future[None] = loop.create_future()
            try:
                await loop.create_unix_connection(partial(_Line, self, lost), self._socket_path)
            except OSError:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            try:
                await lost
            finally:
                self._close()
            retry_s = _FIRST_RETRY_S
            # a controller that accepts and closes at once must not be hammered; after one that refused, another may come
            await asyncio.sleep(_REFUSED_RETRY_S if self._refusal else retry_s)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _opened(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.write(record(self._hello()))
        self._on_connect()

    def _received(self, message: Any) -> None:
        refusal = message.reason if isinstance(message, Refused) else ""
        if refusal and refusal != self._refusal:
            logger.error("control_line_refused reason=%s", refusal)
        self._refusal = refusal
        try:
            self._on_message(message)
        except Exception:
            logger.exception("control_message_failed message=%s", type(message).__name__)


class _Line(asyncio.Protocol):
    def __init__(self, link: ControlLink, lost: "asyncio.Future[None]") -> None:
        self._link = link
        self._lost = lost
        self._reader = RecordReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._link._opened(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        try:
            found = self._reader.feed(data)
        except ProtocolError as error:
            logger.warning("control_line_dropped reason=%s", error)
            if self._transport is not None:
                self._transport.abort()
            return
        for message in found:
            self._link._received(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if not self._lost.done():
            self._lost.set_result(None)
