"""The short way beside a link: a Unix socket of packets that takes small envelopes from process to process.

What goes over ZeroMQ passes a thread of its own in either process, and each of the four wakes up the next one. A packet needs one
call of the kernel here and one there. ZeroMQ stays for all else: large envelopes, those that the socket has no room for, the
beats that tell a frozen process from a busy one, and the news of a death.

How this works: the replica says LINE with its first answer, the caller comes to the door where descriptors are lent too
(`wire/lending.py`) and says which caller it is, and the replica sends a packet, empty if need be. From then on both send by it.
Each end counts the envelopes that it sends; once there has been a line, each carries its number and is taken in its turn,
whichever way it came. A caller ends its half when nothing was said for a while. The replica closes the line when it has read all,
the caller likewise; what comes next goes over ZeroMQ, until there is another line.
"""

import array
import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from select import POLLHUP, POLLIN, poll
from typing import Generic, TypeVar

from servd.exceptions import ProtocolError
from servd.wire.write_right import Given, close_all

PACKET_BYTES = 64 * 1024
"""Larger envelopes go over ZeroMQ, whose thread sends them while this one works."""

_AT_ONCE = 16
"""Packets that are taken in together: what they ask is answered in one envelope, as long as that takes no millisecond."""

_ANCILLARY_BYTES = socket.CMSG_LEN(253 * array.array("i").itemsize)
"""The kernel takes no more descriptors with a packet."""

EnvelopeT = TypeVar("EnvelopeT")


class InOrder(Generic[EnvelopeT]):
    """The envelopes of one direction of a link, which come two ways, in the order in which they were sent. Pure."""

    __slots__ = ("_held", "_next")

    def __init__(self) -> None:
        self._next = 0
        self._held: dict[int, EnvelopeT] = {}

    def __repr__(self) -> str:
        return f"InOrder(next={self._next}, held={sorted(self._held)})"

    @property
    def taken(self) -> int:
        """How many have been taken in."""
        return self._next

    def forget(self) -> None:
        """Nothing more is taken in, so that nothing needs to be held."""
        self._held.clear()

    def take(self, number: int | None, envelope: EnvelopeT) -> Sequence[EnvelopeT]:
        """What can be taken in now that this one has come, in order.

        Args:
            number: that it carries, 0 for the first of the link; None = none, so it was sent before any that does.

        Raises:
            ProtocolError: there was one of that number.
        """
        if number is not None and number != self._next:
            if number < self._next or number in self._held:
                raise ProtocolError(f"envelope {number} came twice")
            self._held[number] = envelope
            return ()
        self._next += 1
        if not self._held:
            return (envelope,)
        ready = [envelope]
        while (found := self._held.pop(self._next, None)) is not None:
            ready.append(found)
            self._next += 1
        return ready


class PacketLine:
    """One end of a line.

    Args:
        line: connected, of packets; closed with this.
        on_packets: called with the packets that were there, and the descriptors that came with some of them, by index.
        on_end: called once when the other end has closed it; what it had sent has been told before.
        heeds_gone: what an end has sent that has closed the line since is told too. A caller closes it when it gives the replica
            up, for one that is frozen, say, and its requests are sent elsewhere then.
    """

    __slots__ = (
        "_heeds_gone",
        "_is_closed",
        "_line",
        "_loop",
        "_on_end",
        "_on_packets",
        "_poll",
        "_recv",
        "_send",
        "_takes_descriptors",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        line: socket.socket,
        on_packets: Callable[[list[bytes], dict[int, list[int]]], None],
        on_end: Callable[[], None],
        *,
        heeds_gone: bool = True,
    ) -> None:
        self._loop = loop
        self._line = line
        self._on_packets = on_packets
        self._on_end = on_end
        self._heeds_gone = heeds_gone
        self._send, self._recv = line.send, line.recv
        asked = poll()
        asked.register(line, POLLIN)
        self._poll = asked.poll
        self._is_closed = self._takes_descriptors = False
        line.setblocking(False)
        loop.add_reader(line, self.read)

    def __repr__(self) -> str:
        return f"PacketLine({'closed' if self._is_closed else self._line.fileno()})"

    def send(self, data: bytes, given: Given | None = None) -> bool:
        """Whether it was sent, with what is given: not when it is large, or there is no room for it now."""
        if len(data) > PACKET_BYTES:
            return False
        try:
            if given:
                socket.send_fds(self._line, [data], given.descriptors)
            else:
                self._send(data)
        except OSError:
            # full, or ended at either end, which is told when what the other one had sent was read
            return False
        return True

    def take_descriptors(self) -> None:
        """Look for descriptors that come with packets, which costs something."""
        self._takes_descriptors = True

    def end(self) -> None:
        """Send nothing more; the other end closes the line once it has read all."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close; what was sent can still be read at the other end. Calling it again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._line)
            self._line.close()

    def read(self) -> bool:
        """Take in what is there; whether there may be more."""
        packets: list[bytes] = []
        given: dict[int, list[int]] = {}
        is_gone = False
        while not self._is_closed:
            try:
                if self._takes_descriptors:
                    packet, descriptors = _receive(self._line)
                    if descriptors:
                        given[len(packets)] = descriptors
                    packets.append(packet)
                else:
                    packets.append(self._recv(PACKET_BYTES))
            except ConnectionError:
                # the other end closed it without having read all; said once, before what it had sent
                continue
            except OSError:
                break
            # to ask whether there are more costs a third of an attempt
            if not packets[-1] or len(packets) == _AT_ONCE or not (there := self._poll(0)):
                break
            # who has but ended its half is still there
            is_gone = is_gone or there[0][1] & POLLHUP > 0
        has_ended = bool(packets) and not packets[-1]
        if has_ended:
            packets.pop()
        if packets and (self._heeds_gone or not is_gone):
            self._on_packets(packets, given)
        else:
            for descriptors in given.values():
                close_all(descriptors)
        if has_ended and not self._is_closed:
            self.close()
            self._on_end()
        return len(packets) == _AT_ONCE


def _receive(line: socket.socket) -> tuple[bytes, list[int]]:
    packet, ancillary, _, _ = line.recvmsg(PACKET_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return packet, list(descriptors)
