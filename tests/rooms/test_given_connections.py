"""Clients' connections that went with requests: nobody keeps one that he has no use for."""

import asyncio
import gc
import json
import os
import socket
from typing import Any

import pytest

from servd.ground import descendants
from servd.proxy.http1 import HttpConnection
from servd.proxy.http1_answer import HttpAnswering
from servd.proxy.limits import Limits
from servd.wire.caller_link import LinkWatch
from servd.wire.link import ReplicaLink
from servd.wire.packet_line import PacketLine
from servd.wire.write_right import Given, given_with, new_right
from tests.descriptors import few_descriptors
from tests.fakes import Room, wait_until
from tests.rooms.test_lending import BODY, HEAD, MIB, Client, ongoing, open_descriptors, serve
from tests.rooms.test_lent_with_request import Waiting, peers, warm, wrote
from tests.rooms.test_packet_line import Pair

__all__ = ["wrote"]


@pytest.mark.parametrize("count", [1, 5, 40])
async def test_what_comes_of_a_caller_that_is_gone_is_closed(count: int) -> None:
    gc.collect()
    before = open_descriptors()
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard: list[bytes] = []
    ended = asyncio.Event()

    def note(packets: list[bytes], given: dict[int, list[int]]) -> None:
        heard.extend(packets)
        for descriptors in given.values():
            for descriptor in descriptors:
                os.close(descriptor)

    line = PacketLine(asyncio.get_running_loop(), there, note, ended.set, heeds_gone=False)
    line.take_descriptors()
    # as a frozen replica: nothing is read before the caller is gone
    client, served = socket.socketpair()
    for _ in range(count):
        right = new_right()
        socket.send_fds(here, [b"envelope"], [served.fileno(), right])
        os.close(right)
    served.close()
    here.close()
    await ended.wait()
    assert not heard
    client.settimeout(5)
    assert client.recv(1) == b"", "its client hears that it has ended"
    client.close()
    line.close()
    assert open_descriptors() == before


async def test_a_large_answer_of_the_proxy_itself_arrives() -> None:
    async with Room() as room:
        room.route(room.replica())
        routes = {f"/{'x' * 100}{number}": "app" for number in range(1000)}
        room.forwarder.table.as_document = lambda **_: routes  # type: ignore[method-assign]
        answer = await room.raw(b"GET /-/routes HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == routes
        await wait_until(lambda: not room.listener.connections)


def given_one(call_id: int) -> Given:
    """A connection and a right, as they come with an envelope."""
    return given_with((call_id,), [os.open(os.devnull, os.O_RDONLY), new_right()])


@pytest.mark.parametrize("who", ["caller", "replica"])
async def test_what_was_not_sent_or_waits_for_its_turn_is_closed_with_the_link(who: str) -> None:
    watch = LinkWatch(asyncio.get_running_loop())
    pair = Pair(watch)
    await pair.begin()
    # who was asked last still knows it
    link, peer = pair.caller, pair.peer
    given = given_one(1)
    numbers = given.descriptors
    if who == "caller":
        link.outbox.given = given
        link.close()
    else:
        assert not peer.in_order.take(99, ([], given))  # type: ignore[arg-type]
        pair.replica.drop(peer)
    del given
    assert not any(os.path.exists(f"/proc/self/fd/{number}") for number in numbers)
    pair.close()
    watch.close()


async def test_a_connection_ends_for_the_replica_too_where_no_descriptor_is_left(wrote: list[int]) -> None:
    handler = Waiting()
    async with Room(limits=Limits(request_s=0.1)) as room:
        room.route(room.replica(handler))
        await warm(room)
        client = Client(room)
        await client.send(HEAD % f"wait/{MIB}")
        await wait_until(lambda: bool(handler.begun))
        # a copy of the connection stands for that of a frozen replica
        (connection,) = [one for one in room.listener.connections if isinstance(one, HttpConnection)]
        copy = os.dup(connection._transport.get_extra_info("socket").fileno())
        # its time limit has passed
        await wait_until(lambda: bool(handler.ended))
        with few_descriptors(0):
            connection._transport.abort()
            assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        os.close(copy)
        client.socket.close()


def test_none_of_the_last_descriptors_is_taken() -> None:
    # what was left by others would make room meanwhile
    gc.collect()
    given = [new_right() for _ in range(2)]
    with few_descriptors(10):
        before = open_descriptors()
        with pytest.raises(OSError, match="Too many open files"):
            new_right()
        copies = [os.dup(end) for end in given]
        assert not given_with((1,), copies)
        assert open_descriptors() == before
    kept = given_with((1,), given)
    assert len(kept) == 1


def test_forked_children_have_neither() -> None:
    given = given_one(1)
    leader = descendants._Leader(os.getpid(), "", "", "/nowhere", frozenset())
    pid = os.fork()
    if not pid:
        try:
            descendants._close_own_sockets(leader)
            os._exit(sum(os.path.exists(f"/proc/self/fd/{number}") for number in given.descriptors))
        finally:
            os._exit(9)
    assert os.waitpid(pid, 0)[1] == 0
    assert all(os.path.exists(f"/proc/self/fd/{number}") for number in given.descriptors)


async def test_another_class_in_the_place_of_sockets_costs_no_answer(
    wrote: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, *args: Any) -> None:
            # as that of a well-known package
            if kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                raise ValueError("Socket type must be stream or datagram")
            super().__init__(family, kind, *args)

    async with Room() as room:
        room.route(room.replica(Waiting()))
        await warm(room)
        client = Client(room)
        monkeypatch.setattr(socket, "socket", Other)
        await client.send(HEAD % f"whole/{MIB}")
        assert await client.answer() == BODY[:MIB]
        client.socket.close()


@pytest.mark.parametrize("path", [f"whole/{MIB}", "sized/3/70000"])
@pytest.mark.parametrize("is_half", [True, False])
async def test_who_leaves_with_the_whole_answer_had_it(
    wrote: list[int], monkeypatch: pytest.MonkeyPatch, path: str, is_half: bool
) -> None:
    noted: list[int] = []
    note, flush = HttpAnswering._note, ReplicaLink.flush

    def count(connection: HttpAnswering, status: int) -> None:
        noted.append(status)
        note(connection, status)

    async with Room() as room:
        room.route(room.replica(serve))
        await warm(room)
        client = Client(room)
        monkeypatch.setattr(HttpAnswering, "_note", count)
        # the client has the answer before the proxy knows of it
        monkeypatch.setattr(
            ReplicaLink, "flush", lambda link: asyncio.get_running_loop().call_later(0.005, flush, link) and None
        )
        await client.send(HEAD % path)
        assert len(await client.answer()) in (MIB, 210_000)
        if is_half:
            client.socket.shutdown(socket.SHUT_WR)
            assert await client.rest() == b""
        client.socket.close()
        await wait_until(lambda: not room.listener.connections)
        assert noted == [200]


async def test_a_client_that_leaves_in_the_midst_of_an_answer_is_noticed(wrote: list[int]) -> None:
    async with Room() as room:
        room.route(room.replica(serve))
        await warm(room)
        client = Client(room)
        await client.send(HEAD % "hangs/3/70000")
        await client._take(210_000)
        # nobody writes to it, so nobody would hear of a reset
        client.socket.shutdown(socket.SHUT_WR)
        await client.rest()
        await wait_until(lambda: ongoing(room) == 0)
        client.socket.close()


@pytest.mark.parametrize("ends_by", ["limit", "death", "leaving"])
async def test_an_answer_that_its_replica_had_begun_is_not_noted_with_what_was_before(
    wrote: list[int], monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    noted: list[tuple[int, int]] = []
    note = HttpAnswering._note

    def count(connection: HttpAnswering, status: int) -> None:
        noted.append((status, connection._sent_bytes if connection.has_begun else 0))
        note(connection, status)

    async with Room(limits=Limits(request_s=0.3 if ends_by == "limit" else 0.0)) as room:
        room.route(room.replica(serve))
        await warm(room)
        monkeypatch.setattr(HttpAnswering, "_note", count)
        for has_asked_before in (False, True):
            client = Client(room)
            noted.clear()
            if has_asked_before:
                await client.send(HEAD % f"whole/{MIB}")
                await client.answer()
                await wait_until(lambda: len(noted) == 1)
            noted.clear()
            await client.send(HEAD % "hangs/3/70000")
            await client._take(210_000)
            if ends_by == "death":
                (peer,) = [peer for peer in peers(room) if peer.pending]
                peer.link._lose("its connection ended")
            if ends_by == "leaving":
                client.socket.close()
            else:
                await client.rest()
            await wait_until(lambda: bool(noted) and ongoing(room) == 0)
            ((status, size),) = noted
            assert status == (499 if ends_by == "leaving" else 200)
            assert 210_000 <= size <= 210_400
            client.socket.close()
            if ends_by == "death":
                break
