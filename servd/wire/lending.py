"""The line for descriptors beside a link: how a caller lends a client's connection to a replica, which reads or writes it itself.

ZeroMQ cannot carry descriptors, so there is a Unix socket of packets beside the replica's own, made when it is first needed. One
packet is one loan. The states of a loan, of which each end holds its part:

* asked: the replica has said ASK, behind the head of its answer, and sends nothing of the body meanwhile;
* lent: the caller, who has nothing of its own left to write, has sent the descriptor, and writes nothing until it is back;
* kept: the caller has said KEEP instead, and the body goes as records;
* back: the replica has said BACK and how many bytes it has written. It may say so at any time after ASK, also of a loan that
  it has not seen: a packet that comes later is closed unused.

A call that ends otherwise (CANCEL, a lost link) ends the loan with it: both ends close their descriptor.

What is left of a request's body is lent with the request (`wire/body_loan.py`), to replicas that have said that they take it.
The packet is sent before the request's record, so it is there when that arrives; the replica says TAKEN when it reads no more.

The connection of a WebSocket comes in the same way, as a body of no bytes. The replica neither reads nor writes before the
caller, who has written the answer to the handshake, sends the first BODY, and with it what the client had sent by then: from then
on the caller does neither, for good. The replica says BACK when the connection is over. One that has not arrived is RETURNED.

Who comes with a packet that holds its key alone opens a line for envelopes (`wire/packet_line.py`), and lends nothing by it.
"""

import array
import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from servd.ground.descendants import hide, show
from servd.ground.host_limits import is_one_of_the_last
from servd.wire.began import lending_path
from servd.wire.credentials import peer_credentials
from servd.wire.lent_socket import LentSocket

_PACKET = struct.Struct("<QQq")
_BODY_PACKET = struct.Struct("<QQqx")
"""Of a request's body: one byte longer, so that nobody takes it for the other."""
_GREETING = struct.Struct("<Q")
_BACKLOG = 128
_CHUNKED = -1
_NO_SIGNAL = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

logger = logging.getLogger(__name__)


class Loan(NamedTuple):
    """What a packet says.

    key: of the caller, as in its HELLO. call_id: of the request. left: bytes that the body still has; None = it goes in chunks.
    is_request: it is the body of the request.
    """

    key: int
    call_id: int
    left: int | None
    is_request: bool = False


class LendingLine:
    """A caller's end, connected with the first loan."""

    __slots__ = ("_path", "_socket")

    def __init__(self, address: str) -> None:
        self._path = lending_path(address)
        self._socket: socket.socket | None = None

    def __repr__(self) -> str:
        return f"LendingLine({self._path})"

    def lend(self, loan: Loan, descriptor: int) -> bool:
        """Send it; False when it cannot be sent now, and nothing has happened then."""
        form = _BODY_PACKET if loan.is_request else _PACKET
        packet = form.pack(loan.key, loan.call_id, _CHUNKED if loan.left is None else loan.left)
        for _ in range(2):
            try:
                line = self._socket or _enter(self._path)
                if line is None:
                    return False
                self._socket = line
                socket.send_fds(line, [packet], [descriptor], _NO_SIGNAL)
                return True
            except BlockingIOError:
                return False
            except OSError:
                # the replica's end was closed, and may have been opened again
                self.close()
        return False

    @property
    def is_open(self) -> bool:
        """It is connected, and the replica's process has neither closed its end nor died: then the kernel would say so."""
        if self._socket is None:
            return False
        try:
            return bool(self._socket.recv(1, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close; a later loan connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def line_for_envelopes(address: str, key: int) -> socket.socket | None:
    """A line to the replica for envelopes of the caller with this key; None when it cannot be had now, or would take one of the
    last descriptors."""
    try:
        line = _enter(lending_path(address))
    # any: see `LendingDoor.open`
    except Exception:
        return None
    if line is not None and is_one_of_the_last(line.fileno()):
        line.close()
        return None
    if line is not None:
        # there is room for it, and who has closed the door meanwhile closes the line
        with contextlib.suppress(OSError):
            line.send(_GREETING.pack(key))
    return line


def _enter(path: str | None) -> socket.socket | None:
    if path is None:
        return None
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        line.connect(path)
        if peer_credentials(line)[1] != os.getuid():
            raise PermissionError(f"{path} belongs to another user")
    except Exception:
        line.close()
        raise
    return line


class LendingDoor:
    """A replica's end: opened when it first asks, or is first sent a large body.

    What comes is given to who expects it, and closed where nobody does. Bodies of requests wait for theirs.

    Args:
        on_line: called with a caller's key and the line that it has opened for envelopes, which is its own to close.

    Attributes:
        takes_websockets: it is opened for them before anybody comes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        on_line: Callable[[int, socket.socket], None] | None = None,
        *,
        takes_websockets: bool = False,
    ) -> None:
        self.takes_websockets = takes_websockets
        self._loop = loop
        self._on_line = on_line
        self._path = lending_path(address)
        self._door: socket.socket | None = None
        self._lines: set[socket.socket] = set()
        self._has_failed = False
        self._expected: dict[tuple[int, int], Callable[[LentSocket | None], None]] = {}
        self._bodies: dict[tuple[int, int], tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"LendingDoor({self._path}, {len(self._lines)} lines)"

    def expect(self, key: int, call_id: int, take: "Callable[[LentSocket | None], None]") -> None:
        """Give this the loan of that caller and call; None = loans that were sent may not arrive, so wait for none."""
        self._expected[key, call_id] = take

    def keep(self, key: int, call_id: int) -> None:
        """That caller does not lend it for that call."""
        take = self._expected.pop((key, call_id), None)
        if take is not None:
            take(None)

    def forget(self, key: int, call_id: int) -> None:
        """Expect it no longer."""
        self._expected.pop((key, call_id), None)

    def body(self, key: int, call_id: int) -> tuple[int, int] | None:
        """Descriptor and bytes that are left of the body that this caller has lent with this request, which has come; None = it
        did not arrive, and will not."""
        return self._bodies.pop((key, call_id), None) if self.has_body(key, call_id) else None

    def has_body(self, key: int, call_id: int) -> bool:
        """Whether what this caller has lent with this request, which has come, is there."""
        if (key, call_id) not in self._bodies:
            self._take_all()
        return (key, call_id) in self._bodies

    def refuse(self, key: int, call_id: int) -> None:
        """Close what was lent with a request that is not served."""
        if (lent := self.body(key, call_id)) is not None:
            _close(lent[0])

    def leave(self, key: int) -> None:
        """The caller is gone: none of its requests will come."""
        # what it sent may not have been read yet, and would be kept for ever
        self._take_all()
        for known in [known for known in self._bodies if known[0] == key]:
            _close(self._bodies.pop(known)[0])

    def open(self) -> bool:
        """Whether callers can lend."""
        if self._path is None or self._has_failed:
            return False
        if self._door is not None:
            if os.path.lexists(self._path):
                return True
            # somebody has removed it: new callers would not find it
            self.close()
        door: socket.socket | None = None
        try:
            door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            door.bind(self._path)
            door.listen(_BACKLOG)
        # any: user code may have put a class of its own in the place of `socket.socket`, which takes no packets, say
        except Exception as error:
            if door is not None:
                door.close()
            # asked for again with each large answer otherwise
            self._has_failed = True
            logger.warning("lending_door_failed path=%s reason=%s: bodies go through the proxy", self._path, error)
            return False
        self._door = door
        self._loop.add_reader(door, self._accept)
        return True

    def close(self) -> None:
        """Close; nobody can lend any more."""
        for line in list(self._lines):
            self._drop(line)
        if self._door is not None:
            self._loop.remove_reader(self._door)
            self._door.close()
            self._door = None
            with contextlib.suppress(OSError):
                os.unlink(self._path or "")
        for descriptor, _ in self._bodies.values():
            _close(descriptor)
        self._bodies.clear()
        self._give_up()

    def _take_all(self) -> None:
        """Take what has been sent so far, by whomever."""
        self._accept()
        for line in list(self._lines):
            self._take(line)

    def _accept(self) -> None:
        # all who wait: the record of a request tells that its loan was sent before, not by whom the door was entered first
        while self._door is not None:
            try:
                line, _ = self._door.accept()
            except BlockingIOError:
                return
            except Exception as error:
                # no descriptor, say, or as in `open`: whoever waits at the door would wake the loop for ever
                logger.warning("lending_door_closed reason=%s: bodies go through the proxy", error)
                self.close()
                return
            if peer_credentials(line)[1] != os.getuid():
                line.close()
                continue
            line.setblocking(False)
            self._lines.add(line)
            self._loop.add_reader(line, self._take, line)

    def _take(self, line: socket.socket) -> None:
        try:
            while line in self._lines:
                packet, descriptors, flags = _receive(line)
                if len(packet) == _GREETING.size and not descriptors and self._on_line is not None:
                    self._leave_to_link(_GREETING.unpack(packet)[0], line)
                    return
                is_known = len(packet) in (_PACKET.size, _BODY_PACKET.size)
                if not is_known:
                    self._drop(line)
                if not is_known or len(descriptors) != 1 or flags & socket.MSG_CTRUNC:
                    for descriptor in descriptors:
                        os.close(descriptor)
                    if packet:
                        # a loan that came without its descriptor: none was left for it. Nothing: the caller has closed its end
                        self._give_up()
                elif len(packet) == _BODY_PACKET.size:
                    self._keep_body(_BODY_PACKET.unpack(packet), descriptors[0])
                else:
                    self._give(_PACKET.unpack(packet), descriptors[0])
        except BlockingIOError:
            pass
        except OSError:
            self._drop(line)
            self._give_up()

    def _leave_to_link(self, key: int, line: socket.socket) -> None:
        self._loop.remove_reader(line)
        self._lines.discard(line)
        if self._on_line is None or is_one_of_the_last(line.fileno()):
            line.close()
        else:
            self._on_line(key, line)

    def _keep_body(self, loan: tuple[int, int, int], descriptor: int) -> None:
        key, call_id, left = loan
        if is_one_of_the_last(descriptor):
            os.close(descriptor)
        else:
            # until whoever reads it does so itself
            hide(descriptor)
            self._bodies[key, call_id] = descriptor, left

    def _give(self, loan: tuple[int, int, int], descriptor: int) -> None:
        key, call_id, left = loan
        take = self._expected.pop((key, call_id), None)
        if take is None or is_one_of_the_last(descriptor):
            # the request has ended meanwhile, or waits no longer
            os.close(descriptor)
            if take is not None:
                take(None)
        else:
            take(LentSocket(self._loop, descriptor, None if left == _CHUNKED else left))

    def _give_up(self) -> None:
        expected, self._expected = self._expected, {}
        for take in expected.values():
            take(None)

    def _drop(self, line: socket.socket) -> None:
        self._loop.remove_reader(line)
        self._lines.discard(line)
        line.close()


def _close(descriptor: int) -> None:
    show(descriptor)
    os.close(descriptor)


def _receive(line: socket.socket) -> tuple[bytes, list[int], int]:
    """A packet, its descriptors, flags. `socket.recv_fds` would leave the descriptors to programs that are started."""
    room = array.array("i", [0])
    packet, ancillary, flags, _ = line.recvmsg(
        _BODY_PACKET.size + 1, socket.CMSG_LEN(room.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % room.itemsize])
    return packet, list(descriptors), flags
