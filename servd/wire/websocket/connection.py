"""A client's connection that was handed over to a replica for good, which runs a WebSocket over it."""

import asyncio
import socket
from collections import deque
from typing import Protocol

from servd.ground.descendants import hide, show
from servd.wire.records import CREDIT_BYTES, EVENT_COST_BYTES
from servd.wire.websocket.heartbeat import Heartbeat
from servd.wire.websocket.protocol import ABNORMAL, Message, Piece, WebSocketProtocol

_READ_BYTES = 8 * 1024
_MOST_READ_BYTES = 120 * 1024
"""At a time: more once as much has come. A buffer of 128 KiB is asked of the system each time."""
_MESSAGES_AT_ONCE = 64
"""Then others have their turn."""
_ROOM_BYTES = CREDIT_BYTES
_PIECES_AT_ONCE = 64
_YIELD_BYTES = 256 * 1024
_TURN_S = 1.0
_FAREWELL_S = 2.0
"""So long a client has to answer a farewell, and to close its end."""
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_TCP_CLOSE = 7
_NO_SIGN = (1011, "keepalive ping timeout")


class Application(Protocol):
    """Who has the WebSocket: what is told of it, in this order."""

    def on_message(self, message: Message, cost: int) -> None:
        """A message of the client. cost: to be said to `took` once somebody takes it."""
        ...

    def on_farewell(self, code: int, reason: str) -> None:
        """The client says nothing more, or is not heard any more, once: what the handler shall hear."""
        ...

    def on_over(self) -> None:
        """The connection is closed, once."""
        ...


class WebSocketWire:
    """One WebSocket. Nothing is read or written before `begin`.

    At most 1 MiB of the client's messages wait for the handler, beside one more message; the rest waits in the kernel, and the
    client with it. What the kernel does not take of a message is kept, and whoever sends waits until it has left.

    Args:
        descriptor: of the client's connection; closed in the end.
        heartbeat: when the client is asked for signs of life.

    Attributes:
        sent_bytes: of messages that were written, without what frames them.
        is_over: the connection is closed. is_closing: no message is sent any more.
    """

    __slots__ = (
        "_app",
        "_farewell_timer",
        "_heartbeat",
        "_is_cut",
        "_is_due",
        "_is_held",
        "_is_reading",
        "_is_silent",
        "_is_watched",
        "_loop",
        "_out",
        "_protocol",
        "_read_bytes",
        "_since_yield",
        "_socket",
        "_timer",
        "_unsent_bytes",
        "_unsent_then",
        "_waiting",
        "_writers",
        "is_closing",
        "is_over",
        "sent_bytes",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        app: Application,
        descriptor: int,
        protocol: WebSocketProtocol,
        heartbeat: Heartbeat,
    ) -> None:
        self._loop = loop
        self._app = app
        # family and kind are said, not looked up. A default time limit of the user's is not for it
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, descriptor)
        hide(descriptor)
        self._protocol = protocol
        self._heartbeat = heartbeat
        self._out: deque[Piece] = deque()
        self._unsent_bytes = self._unsent_then = self._waiting = self._since_yield = 0
        self._writers: list[asyncio.Future[None]] = []
        self._read_bytes = _READ_BYTES
        self._is_reading = self._is_held = self._is_due = self._is_watched = self._is_silent = self._is_cut = False
        self._timer: asyncio.TimerHandle | None = None
        self._farewell_timer: asyncio.TimerHandle | None = None
        self.is_closing = self.is_over = False
        self.sent_bytes = 0

    def __repr__(self) -> str:
        state = "over" if self.is_over else "closing" if self.is_closing else "open"
        return f"WebSocketWire({state}, {self._waiting} bytes wait, {self._unsent_bytes} unsent)"

    def begin(self, early: bytes) -> None:
        """It is the replica's from now on. early: what the client sent before."""
        self._timer = self._loop.call_later(_TURN_S, self._turn_on)
        if early:
            self._protocol.feed(early)
        self._deliver()

    # --- from the client ------------------------------------------------------------------------------------------------

    def took(self, cost: int) -> None:
        """The handler took a message of that cost."""
        self._waiting -= cost
        if self._is_held and not self._is_due and self._waiting <= _ROOM_BYTES // 2:
            self._deliver()

    def _read(self) -> None:
        try:
            data = self._socket.recv(self._read_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
        elif not self._is_silent:
            if len(data) >= self._read_bytes:
                self._read_bytes = _MOST_READ_BYTES
            elif len(data) < _READ_BYTES:
                self._read_bytes = _READ_BYTES
            self._heartbeat.hear()
            self._protocol.feed(data)
            self._deliver()

    def _deliver(self) -> None:
        """Give on what has come, as far as there is room for it, then read on, or not."""
        protocol, on_message = self._protocol, self._app.on_message
        left = _MESSAGES_AT_ONCE
        self._is_held = False
        while (message := protocol.next_message()) is not None:
            left -= 1
            if not self.is_closing:
                cost = len(message.get("text") or message.get("bytes") or "") + EVENT_COST_BYTES
                self._waiting += cost
                on_message(message, cost)
            if self._waiting >= _ROOM_BYTES or self._unsent_bytes >= _ROOM_BYTES or not left:
                self._is_held = True
                break
        if protocol.is_interrupted:
            self._is_held, left = True, 0
        if answers := protocol.answers():
            self._write(answers)
            # who sends pings and reads no pongs
            self._is_held = self._is_held or self._unsent_bytes >= _ROOM_BYTES
        if self.is_over:
            return
        if protocol.is_ended:
            self._part(*(protocol.farewell or protocol.told_off or (ABNORMAL, "")))
        elif not self._is_held:
            self._read_on()
        else:
            self._stop_reading()
            if not left:
                self._is_due = True
                self._loop.call_soon(self._deliver_on)

    def _deliver_on(self) -> None:
        self._is_due = False
        if self._is_held and not self.is_over and self._waiting < _ROOM_BYTES:
            self._deliver()

    def _part(self, code: int, reason: str) -> None:
        """Nothing that the client sends is looked at any more: write what is left, and wait for its end."""
        if not self._is_silent:
            self._is_silent = self.is_closing = True
            self._is_held = False
            self._app.on_farewell(code, reason)
            self._read_on()
            self._wait_for_end()
            if not self._unsent_bytes:
                self._shut()

    # --- to the client --------------------------------------------------------------------------------------------------

    def send(self, is_text: bool, body: bytes) -> bool:
        """Send a message; whether the sender is to wait (`room`) before the next."""
        self._write(self._protocol.text(body) if is_text else self._protocol.binary(body))
        size = len(body)
        self.sent_bytes += size
        self._since_yield += size + EVENT_COST_BYTES
        return self._unsent_bytes > 0 or self._since_yield > _YIELD_BYTES

    async def room(self) -> None:
        """Wait until all that was sent has left."""
        self._since_yield = 0
        if not self._unsent_bytes:
            # a reader that is as fast as its writer must not keep the loop for itself
            await asyncio.sleep(0)
        while self._unsent_bytes and not self.is_over:
            waiter = self._loop.create_future()
            self._writers.append(waiter)
            await waiter

    def close(self, code: int, reason: str = "") -> None:
        """Say farewell. Calling it again does nothing.

        Raises:
            ValueError: a server may not say this code.
        """
        if self.is_closing or self.is_over:
            return
        pieces = self._protocol.close(code, reason)
        self.is_closing = True
        self._write(pieces)
        if not self.is_over:
            self._wait_for_end()
            if self._is_held:
                # nobody takes what has come, and behind it is the client's farewell
                self._waiting = 0
                self._deliver()

    def cut(self) -> None:
        """Close the connection, whatever the client has got."""
        self._end()

    def _write(self, pieces: list[Piece]) -> None:
        if self.is_over or not pieces:
            return
        if self._out:
            self._keep(pieces)
            return
        is_one, first = len(pieces) == 1, pieces[0]
        try:
            size = self._socket.send(first, _FLAGS) if is_one else self._socket.sendmsg(pieces, (), _FLAGS)
        except BlockingIOError:
            size = 0
        except OSError:
            self._end()
            return
        if is_one and size == len(first):
            return
        self._keep(pieces)
        self._wrote(size)
        if self._out:
            self._is_watched = True
            self._loop.add_writer(self._socket, self._write_on)

    def _keep(self, pieces: list[Piece]) -> None:
        self._out.extend(pieces)
        self._unsent_bytes += sum(map(len, pieces))

    def _wrote(self, size: int) -> None:
        self._unsent_bytes -= size
        out = self._out
        while out and size >= len(out[0]):
            size -= len(out.popleft())
        if size:
            out[0] = memoryview(out[0])[size:]

    def _write_on(self) -> None:
        pieces = [self._out[number] for number in range(min(len(self._out), _PIECES_AT_ONCE))]
        try:
            self._wrote(self._socket.sendmsg(pieces, (), _FLAGS))
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if self._out:
            return
        self._stop_writing()
        self._wake()
        if self._is_silent:
            self._shut()
        elif self._is_held and not self._is_due:
            self._deliver_on()

    # --- its end --------------------------------------------------------------------------------------------------------

    def _turn_on(self) -> None:
        self._timer = self._loop.call_later(_TURN_S, self._turn_on)
        self.turn()

    def turn(self) -> None:
        """Once a second: ask the client for a sign of life, or end the WebSocket of one that does not answer."""
        if not self._is_reading and self._is_reset():
            self._end()
            return
        before, self._unsent_then = self._unsent_then, self._unsent_bytes
        is_taking = self._unsent_bytes != before
        if self._is_silent:
            return
        beat = self._heartbeat.turn(is_excused=is_taking or not self._is_reading)
        if beat == "ping":
            self._write(self._protocol.ping())
        elif beat == "gone":
            heard = (ABNORMAL, "")
            if not self.is_closing:
                heard = _NO_SIGN
                self._write(self._protocol.close(*heard))
            if not self.is_over:
                self._part(*heard)

    def _is_reset(self) -> bool:
        try:
            return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
        except OSError:
            # no TCP
            return False

    def _wait_for_end(self) -> None:
        if self._farewell_timer is None:
            self._farewell_timer = self._loop.call_later(_FAREWELL_S, self._end)

    def _shut(self) -> None:
        """Say that nothing more comes. The connection is closed once the client has said so, too: what it sent and nobody read
        would reset it, and what was written before with it."""
        if not self._is_cut:
            self._is_cut = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._end()

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = self.is_closing = True
        for timer in (self._timer, self._farewell_timer):
            if timer is not None:
                timer.cancel()
        # before the close: the kernel goes on watching what somebody else has open too
        self._stop_reading()
        self._stop_writing()
        self._out.clear()
        self._unsent_bytes = 0
        show(self._socket.fileno())
        self._socket.close()
        self._wake()
        if not self._is_silent:
            self._is_silent = True
            self._app.on_farewell(ABNORMAL, "")
        self._app.on_over()

    def _read_on(self) -> None:
        if not self._is_reading and not self.is_over:
            self._is_reading = True
            self._loop.add_reader(self._socket, self._read)

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket)

    def _stop_writing(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_writer(self._socket)

    def _wake(self) -> None:
        writers, self._writers = self._writers, []
        for waiter in writers:
            if not waiter.done():
                waiter.set_result(None)
