"""Small envelopes go by a line of their own, beside ZeroMQ, and nobody can tell but by the time."""

import asyncio
import logging
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from servd.calls.replica_peer import ReplicaPeer
from servd.replica.caller_peer import CallerPeer
from servd.wire import caller_link
from servd.wire.caller_link import CallerLink, LinkWatch
from servd.wire.lending import line_for_envelopes
from servd.wire.link import Peer, ReplicaLink
from servd.wire.packet_line import PACKET_BYTES
from servd.wire.records import FRAME_BYTES, LINE, Outbox
from tests.descriptors import few_descriptors
from tests.fakes import Room, new_address, wait_until
from tests.rooms.test_requests import Replicas

SMALL_BUFFER = 4096


class Pair:
    """Both ends of a link whose caller opens lines: what each of them heard, in order."""

    def __init__(self, watch: LinkWatch, *, is_narrow: bool = False) -> None:
        address = new_address()
        self.lines = 0
        self.is_closed = self.is_short = False
        self.heard: dict[str, list[Any]] = {"caller": [], "replica": []}
        self.lost: list[str] = []
        self._is_narrow = is_narrow
        self.replica = ReplicaLink(asyncio.get_running_loop(), address, self._on_records, lambda _: None)
        self.caller = CallerLink(
            watch, address, lambda records, frames: self._note("caller", records, frames), self.lost.append
        )

    def _on_records(self, _: Peer, records: list[Any], frames: list[Any]) -> None:
        self._note("replica", records, frames)

    def _note(self, who: str, records: list[Any], frames: list[Any]) -> None:
        self.heard[who] += [(number, body if type(body) is bytes else frames[body]) for number, body in records[1:]]

    @property
    def peer(self) -> Peer:
        (peer,) = self.replica.peers.values()
        return peer

    async def begin(self) -> None:
        """Let the caller open a line, which both use when this returns."""
        self.caller.send((0, b""))
        await wait_until(lambda: bool(self.replica.peers))
        self.caller.use_lines(self.connect)
        await wait_until(lambda: self.caller._heard is not None)
        self.heard["replica"].clear()

    def connect(self) -> socket.socket | None:
        if self.is_closed:
            return None
        self.lines += 1
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (here, there):
            end.setblocking(False)
            if self._is_narrow:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        if self.is_short:
            there.close()
        else:
            self.replica.add_line(self.peer, there)
        return here

    def close(self) -> None:
        self.caller.close()
        self.replica.close()


@pytest.fixture
async def watch() -> AsyncIterator[LinkWatch]:
    made = LinkWatch(asyncio.get_running_loop())
    yield made
    made.close()


def say(outbox: Outbox, send: Any, number: int, size: int) -> tuple[int, bytes]:
    body = b"%d" % (number % 10) * size
    send((number, outbox.attach(body)))
    return number, body


@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_whichever_way_envelopes_go_they_come_in_order(watch: LinkWatch, seed: int, is_narrow: bool) -> None:
    rng = random.Random(seed)
    pair = Pair(watch, is_narrow=is_narrow)
    said: dict[str, list[Any]] = {"caller": [], "replica": []}
    try:
        await pair.begin()
        ways = (("replica", pair.caller.outbox, pair.caller.send), ("caller", pair.peer.outbox, pair.peer.send))
        for number in range(150):
            who, outbox, send = rng.choice(ways)
            size = rng.choice((1, 100, 2000, PACKET_BYTES - 100, PACKET_BYTES, FRAME_BYTES, 3 * FRAME_BYTES))
            said[who].append(say(outbox, send, number, size))
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice((0, 0.001)))
        await wait_until(lambda: all(len(pair.heard[who]) == len(said[who]) for who in said))
        assert pair.heard == said
        assert not pair.lost
    finally:
        pair.close()


async def test_what_was_sent_before_an_end_is_heard_though_the_other_end_has_not_read_all(watch: LinkWatch) -> None:
    pair = Pair(watch)
    try:
        await pair.begin()
        assert pair.peer.line is not None
        for number in range(40):
            # packets of their own, and more of them than are taken in together
            pair.peer.send((number, b"answer"))
            pair.replica.flush()
            pair.caller.send((number, b"unread"))
            pair.caller._flush()
        pair.replica.close()
        await wait_until(lambda: bool(pair.lost))
        assert pair.heard["caller"] == [(number, b"answer") for number in range(40)]
    finally:
        pair.close()


@pytest.mark.parametrize("count", [1, 2, 40])
async def test_what_a_caller_sent_that_has_left_since_is_not_taken_in(watch: LinkWatch, count: int) -> None:
    pair = Pair(watch)
    try:
        await pair.begin()
        for number in range(count):
            pair.caller.send((number, b"asked elsewhere meanwhile"))
            pair.caller._flush()
        pair.caller.close()
        await wait_until(lambda: not pair.replica.peers)
        assert pair.heard["replica"] == []
    finally:
        pair.close()


async def test_a_line_that_nobody_needs_is_closed_and_another_is_opened_when_it_is_needed(
    watch: LinkWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_link, "_LINE_IDLE_S", 0.02)
    pair = Pair(watch)
    before = len(os.listdir("/proc/self/fd"))
    try:
        await pair.begin()
        said = []
        for number in range(3):
            await wait_until(lambda: pair.caller._line is None and pair.peer.line is None)
            for small in range(3):
                said.append(say(pair.caller.outbox, pair.caller.send, 10 * number + small, 5))
                pair.peer.send(said[-1])
                await asyncio.sleep(0)
            await wait_until(lambda: pair.heard["replica"] == said == pair.heard["caller"])
        # one for the beginning, and one for each time that something was said
        assert pair.lines == 4
        await wait_until(lambda: pair.caller._line is None and pair.peer.line is None)
    finally:
        pair.close()
    await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_a_line_stays_while_only_the_replica_sends(watch: LinkWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_link, "_LINE_IDLE_S", 0.1)
    pair = Pair(watch)
    try:
        await pair.begin()
        looks = 0

        def look() -> None:
            nonlocal looks
            looks += 1
            CallerLink._look_at_line(pair.caller)

        monkeypatch.setattr(pair.caller, "_look_at_line", look)
        sent: list[tuple[int, bytes]] = []
        # one was due before this counted
        while looks < 3 and pair.caller._line is not None:
            sent.append(say(pair.peer.outbox, pair.peer.send, len(sent), 5))
            await wait_until(lambda: pair.heard["caller"] == sent)
        assert pair.caller._heard is not None
        assert pair.peer.line is not None
        await wait_until(lambda: pair.caller._line is None and pair.peer.line is None)
        assert pair.lines == 1
    finally:
        pair.close()


@pytest.mark.parametrize("is_short", [False, True])
async def test_a_replica_without_lines_any_more_is_asked_once(
    watch: LinkWatch, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    monkeypatch.setattr(caller_link, "_LINE_IDLE_S", 0.02)
    pair = Pair(watch)
    try:
        await pair.begin()
        await wait_until(lambda: pair.caller._line is None)
        pair.is_short, pair.is_closed = is_short, not is_short
        said = [say(pair.caller.outbox, pair.caller.send, number, 5) for number in range(3)]
        await wait_until(lambda: pair.heard["replica"] == said)
        await wait_until(lambda: pair.caller._connect is None)
        said.append(say(pair.caller.outbox, pair.caller.send, 3, 5))
        await wait_until(lambda: pair.heard["replica"] == said)
        assert pair.lines == 1 + is_short
    finally:
        pair.close()


@pytest.mark.parametrize("packet", [b"\xc1", b"\x91\x00", b"\x91\x92\x00\x00"], ids=["nonsense", "number", "again"])
async def test_who_sends_nonsense_by_a_line_is_dropped(
    watch: LinkWatch, packet: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    pair = Pair(watch)
    try:
        await pair.begin()
        line = pair.caller._line
        assert line is not None
        line.send(packet)
        await wait_until(lambda: not pair.replica.peers)
        pair.close()
        pair = Pair(watch)
        await pair.begin()
        line = pair.peer.line
        assert line is not None
        line.send(packet)
        await wait_until(lambda: bool(pair.lost))
    finally:
        pair.close()


# --- callers and replicas -----------------------------------------------------------------------------------------------


def lines(room: Room) -> list[Any]:
    return [peer.line for server in room.servers.values() for peer in server._callers() if peer.line is not None]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_caller_opens_a_line_once_it_has_been_answered(method: str) -> None:
    async with Room() as room:
        room.route(room.replica(), room.replica())
        assert not lines(room)
        for _ in range(10):
            assert (await room.get(method=method)).startswith(b"HTTP/1.1 200 ")
        await wait_until(lambda: bool(lines(room)))
        answers = await asyncio.gather(*(room.get(method=method, body=b"b" * 10) for _ in range(40)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert len(lines(room)) == len(room.servers)


@pytest.mark.parametrize("who", ["caller", "replica", "door", "switch"])
async def test_all_goes_over_zeromq_where_one_of_them_has_no_lines(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if who == "caller":
        # of an edition before lines
        other = ReplicaPeer._on_other
        monkeypatch.setattr(
            ReplicaPeer,
            "_on_other",
            lambda peer, kind, record, frames: (other if kind != LINE else ReplicaPeer._on_part)(
                peer, kind, record, frames
            ),
        )
    elif who == "replica":
        before_send = CallerPeer.before_send

        def say_nothing_of_lines(peer: CallerPeer) -> None:
            before_send(peer)
            records = peer.outbox.records
            records[:] = [record for record in records if record == 0 or record[0] != LINE]

        monkeypatch.setattr(CallerPeer, "before_send", say_nothing_of_lines)
    elif who == "switch":
        monkeypatch.setattr("servd.calls.replica_peer.USES_LINES", False)
    else:
        monkeypatch.setattr("servd.calls.replica_peer.line_for_envelopes", lambda *_: None)
    async with Room() as room:
        room.route(room.replica())
        for _ in range(20):
            assert (await room.get()).startswith(b"HTTP/1.1 200 ")
        assert not lines(room)


async def test_who_has_a_line_gets_no_other_and_nothing_that_was_sent_by_it_is_lost(watch: LinkWatch) -> None:
    pair = Pair(watch)
    try:
        await pair.begin()
        said = [say(pair.caller.outbox, pair.caller.send, 1, 5)]
        pair.caller._flush()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pair.replica.add_line(pair.peer, there)
        assert here.recv(1) == b""
        here.close()
        said.append(say(pair.caller.outbox, pair.caller.send, 2, 5))
        await wait_until(lambda: pair.heard["replica"] == said)
        assert pair.caller._heard is not None
    finally:
        pair.close()


@pytest.mark.long
async def test_a_frozen_replica_begins_nothing_that_was_sent_elsewhere_when_it_goes_on(tmp_path: Path) -> None:
    replicas = Replicas(tmp_path)
    try:
        async with Room() as room:
            frozen = replicas.start("frozen")
            room.route(frozen)
            for _ in range(3):
                await room.get("/before")
            (candidate,) = room.caller.router_of("app_Echo").candidates
            peer = candidate.peer
            assert peer is not None
            await wait_until(lambda: peer.link._heard is not None)
            replicas.signal(0, signal.SIGSTOP)
            post = "POST /%d HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"
            asked = [asyncio.create_task(room.raw((post % number).encode(), timeout_s=30.0)) for number in range(20)]
            await wait_until(lambda: len(peer.pending) == 20 and not peer.link._is_scheduled)
            room.route(frozen, replicas.start("other"))
            answers = await asyncio.gather(*asked)
            assert all(answer.endswith(b"from other") for answer in answers)
            replicas.signal(0, signal.SIGCONT)
            # what lies in its sockets comes before a link that is made now
            room.route(frozen)
            assert (await room.get("/after")).endswith(b"from frozen")
            assert [replicas.seen(f"/{number}") for number in range(20)] == [1] * 20
    finally:
        replicas.close()


async def test_a_line_for_nobody_is_closed() -> None:
    async with Room() as room:
        address = room.replica()
        room.route(address)
        await room.get()
        await wait_until(lambda: bool(lines(room)))
        line = line_for_envelopes(address, 12345)
        assert line is not None
        line.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(line, 10) == b""
        line.close()
        assert (await room.get()).startswith(b"HTTP/1.1 200 ")
        assert len(lines(room)) == 1


class ProxiedSocket(socket.socket):
    """What libraries put in the place of `socket.socket`: it knows streams and datagrams only."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        if type not in (-1, socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ValueError(f"socket type must be stream or datagram, not {type}")
        super().__init__(family, type, proto, fileno)


@pytest.mark.parametrize("takes_websockets", [False, True])
@pytest.mark.parametrize("when", ["before", "between"])
async def test_all_goes_over_zeromq_where_user_code_has_put_another_class_in_the_place_of_sockets(
    when: str, takes_websockets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Room(takes_websockets=takes_websockets) as room:
        address = room.replica()
        if when == "between":
            # the door is there already, and who comes to it cannot be let in
            assert room.servers[address]._door.open()
        monkeypatch.setattr(socket, "socket", ProxiedSocket)
        room.route(address)
        for _ in range(5):
            assert (await room.get()).startswith(b"HTTP/1.1 200 ")
        assert not lines(room)


async def test_a_line_takes_none_of_the_last_descriptors() -> None:
    async with Room() as room:
        address = room.replica()
        assert room.servers[address]._door.open()
        for left, is_had in ((16, False), (17, True)):
            with few_descriptors(left):
                line = line_for_envelopes(address, 1)
            assert (line is not None) is is_had
            if line is not None:
                line.close()
        room.route(address)
        assert (await room.get()).startswith(b"HTTP/1.1 200 ")
