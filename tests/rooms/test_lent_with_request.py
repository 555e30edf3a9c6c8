"""A client's connection that goes to the replica with the request: one of both answers on it, whatever happens meanwhile."""

import asyncio
import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from servd.calls.replica_peer import ReplicaPeer
from servd.calls.request_router import RequestRouter
from servd.ground import descendants
from servd.proxy.forwarder import Target
from servd.proxy.http1_lending import HttpLending
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from servd.wire.packet_line import PacketLine
from servd.wire.records import LENT_EARLY_BYTES
from servd.wire.write_right import Given, given_with, new_right, take_right
from tests.fakes import Room, wait_until
from tests.rooms.test_lending import BODY, HEAD, MIB, Client, ask_once, ongoing, open_descriptors, serve


@pytest.fixture
def wrote(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of the bodies that replicas wrote to connections that came with requests."""
    sizes: list[int] = []
    on_wrote = HttpLending.on_wrote

    def noted(connection: HttpLending, status: int, size: int, left: int | None) -> None:
        sizes.append(size)
        on_wrote(connection, status, size, left)

    monkeypatch.setattr(HttpLending, "on_wrote", noted)
    # it need not learn which answers are large
    monkeypatch.setattr(Target, "is_lent_early", property(lambda _: True, lambda *_: None))
    return sizes


def peers(room: Room) -> list[ReplicaPeer]:
    routers = room.caller._routers.values()
    return [candidate.peer for router in routers for candidate in router.candidates if candidate.peer is not None]


async def warm(room: Room) -> None:
    """Until connections go with requests, to each replica."""
    client = Client(room)
    async with asyncio.timeout(10):
        while not (peers(room) and all(peer.takes_connections for peer in peers(room))):
            await client.send(HEAD % f"whole/{MIB}")
            await client.answer()
    client.socket.close()


class Waiting:
    """A handler that answers when it is told to, with as many bytes as the path says."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, exchange: HttpExchange) -> None:
        path = exchange.scope["path"]
        if not path.startswith("/wait"):
            await serve(exchange)
            return
        self.begun.append(path)
        try:
            await self.go.wait()
            await exchange.answer(200, [], BODY[: int(path.rpartition("/")[2])])
        finally:
            self.ended.append(path)


@pytest.fixture
async def room(wrote: list[int]) -> AsyncIterator[Room]:
    async with Room(hand_over=True) as made:
        made.route(made.replica(serve))
        await warm(made)
        wrote.clear()
        yield made


@pytest.mark.parametrize(
    ("path", "size", "is_lent"),
    [
        ("whole/3", 3, False),
        (f"whole/{LENT_EARLY_BYTES - 1}", LENT_EARLY_BYTES - 1, False),
        (f"whole/{LENT_EARLY_BYTES}", LENT_EARLY_BYTES, True),
        (f"whole/{MIB}", MIB, True),
        (f"whole/{5 * MIB}", 5 * MIB, True),
        ("stream/1/5", 5, False),
        ("stream/100/1000", 100_000, False),
        ("stream/2/70000", 140_000, True),
        (f"stream/5/{MIB}", 5 * MIB, True),
        ("sized/1/5", 5, False),
        ("sized/3/70000", 210_000, True),
        (f"sized/5/{MIB}", 5 * MIB, True),
    ],
)
async def test_answers_arrive_whole_and_the_connection_goes_on(
    room: Room, wrote: list[int], path: str, size: int, is_lent: bool
) -> None:
    client = Client(room)
    for _ in range(2):
        await client.send(HEAD % path)
        assert await client.answer() == BODY[:size]
    await client.send(HEAD % path + HEAD % "whole/3" + HEAD % path)
    assert [await client.answer() for _ in range(3)] == [BODY[:size], BODY[:3], BODY[:size]]
    await wait_until(lambda: ongoing(room) == 0)
    # behind an answer that is not written yet nothing is lent
    assert len(wrote) in ((3, 4) if is_lent else (0,))
    client.socket.close()


async def test_heads_are_those_that_the_proxy_writes(room: Room, wrote: list[int]) -> None:
    def fields(answer: bytes) -> tuple[bytes, set[bytes]]:
        lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
        return lines[0], {line.partition(b":")[0] for line in lines[1:]}

    client = Client(room)
    await client.send(HEAD % f"whole/{LENT_EARLY_BYTES}")
    await wait_until(lambda: bool(wrote))
    async with asyncio.timeout(5):
        itself = await asyncio.get_running_loop().sock_recv(client.socket, 4096)
    by_proxy = await room.raw((HEAD % "whole/9000").encode(), until=b"\r\n\r\n")
    assert fields(itself) == fields(by_proxy)
    assert b"content-length: %d\r\n" % LENT_EARLY_BYTES in itself
    client.socket.close()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("fails/5/70000", BODY[:350_000]),
        ("short/5/70000", BODY[:350_000]),
        ("long/5/70000", BODY[:280_000]),
        (f"long/1/{MIB}", b""),
    ],
)
async def test_what_is_not_whole_never_looks_whole(room: Room, path: str, expected: bytes) -> None:
    client = Client(room)
    await client.send(HEAD % path)
    got = await client.rest()
    assert not got.endswith(b"0\r\n\r\n")
    if b"chunked" not in got:
        assert got.partition(b"\r\n\r\n")[2] == expected
    await wait_until(lambda: ongoing(room) == 0)
    client.socket.close()


async def test_who_reads_nothing_holds_up_no_small_body(room: Room, wrote: list[int]) -> None:
    client = Client(room)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    await client.send(HEAD % f"whole/{MIB}" * 6)
    await wait_until(lambda: bool(wrote) and ongoing(room) == 0)
    assert [await client.answer() for _ in range(6)] == [BODY[:MIB]] * 6
    client.socket.close()


async def test_a_slow_reader_gets_all_of_a_large_body(room: Room, wrote: list[int]) -> None:
    client = Client(room)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    await client.send(HEAD % f"whole/{5 * MIB}")
    await wait_until(lambda: ongoing(room) == 1)
    assert await client.answer() == BODY
    await wait_until(lambda: wrote == [5 * MIB])
    client.socket.close()


async def test_a_time_limit_passes_and_the_replica_answers_no_more(wrote: list[int]) -> None:
    handler = Waiting()
    async with Room(limits=Limits(request_s=0.2)) as room:
        room.route(room.replica(handler))
        await warm(room)
        client = Client(room)
        await client.send(HEAD % f"wait/{MIB}")
        async with asyncio.timeout(5):
            got = await asyncio.get_running_loop().sock_recv(client.socket, 65536)
        assert got.startswith(b"HTTP/1.1 408 ")
        handler.go.set()
        await wait_until(lambda: bool(handler.ended))
        wrote.clear()
        # the connection goes on, with what is asked next
        client._got = b""
        for size in (5, MIB):
            await client.send(HEAD % f"whole/{size}")
            assert await client.answer() == BODY[:size]
        assert wrote == [MIB]
        client.socket.close()


async def test_a_time_limit_in_the_midst_of_an_answer_ends_the_connection(wrote: list[int]) -> None:
    async with Room(limits=Limits(request_s=0.3)) as room:
        room.route(room.replica(serve))
        await warm(room)
        wrote.clear()
        client = Client(room)
        await client.send(HEAD % "hangs/3/70000")
        got = await client.rest()
        assert len(got) > 210_000
        assert not got.endswith(b"0\r\n\r\n")
        assert b" 408 " not in got
        assert not wrote
        await wait_until(lambda: ongoing(room) == 0)
        client.socket.close()


async def test_a_client_that_has_said_all_gets_its_answer(wrote: list[int]) -> None:
    handler = Waiting()
    async with Room() as room:
        room.route(room.replica(handler))
        await warm(room)
        client = Client(room)
        await client.send(HEAD % f"wait/{MIB}")
        await wait_until(lambda: bool(handler.begun))
        client.socket.shutdown(socket.SHUT_WR)
        # the proxy asks the client whether it still listens: it has taken the connection back for that
        async with asyncio.timeout(5):
            assert (await asyncio.get_running_loop().sock_recv(client.socket, 27)).startswith(b"HTTP/1.1 102 ")
        wrote.clear()
        handler.go.set()
        assert await client.answer() == BODY[:MIB]
        assert await client.rest() == b""
        assert not wrote
        client.socket.close()


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_handler_is_cancelled_when_its_client_leaves(wrote: list[int], is_reset: bool) -> None:
    handler = Waiting()
    async with Room() as room:
        room.route(room.replica(handler))
        await warm(room)
        before = open_descriptors()
        for number in range(10):
            client = Client(room)
            await client.send(HEAD % f"wait/{MIB}")
            await wait_until(lambda number=number: len(handler.begun) == number + 1)
            if is_reset:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.socket.close()
            await wait_until(lambda number=number: len(handler.ended) == number + 1)
        await wait_until(lambda: ongoing(room) == 0 and open_descriptors() <= before)


async def test_a_closed_connection_is_closed_for_the_replica_too(wrote: list[int]) -> None:
    handler = Waiting()
    async with Room(limits=Limits(request_s=0.1)) as room:
        room.route(room.replica(handler))
        await warm(room)
        client = Client(room)
        await client.send(f"GET /wait/{MIB} HTTP/1.1\r\nhost: test\r\n\r\n")
        await wait_until(lambda: bool(handler.begun))
        for connection in list(room.listener.connections):
            connection._transport.abort()
        # while the replica has it open still
        assert await client.rest() == b""
        client.socket.close()


@pytest.mark.parametrize("has_begun", [False, True])
async def test_when_its_replica_dies_a_request_is_sent_elsewhere_unless_it_is_answered(
    wrote: list[int], has_begun: bool
) -> None:
    handler = Waiting()
    async with Room() as room:
        first = room.replica(handler)
        room.route(first)
        await warm(room)
        client = Client(room)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await client.send(HEAD % (f"whole/{5 * MIB}" if has_begun else f"wait/{MIB}"))
        await wait_until(lambda: ongoing(room) == 1)
        if has_begun:
            async with asyncio.timeout(5):
                client._got = await asyncio.get_running_loop().sock_recv(client.socket, 1000)
        second = room.replica(serve if has_begun else Waiting())
        room.route(first, second)
        for peer in [peer for peer in peers(room) if peer.pending]:
            # as of one that is frozen: the link is lost, the process lives
            peer.link._lose("its connection ended")
        if has_begun:
            got = await client.rest()
            assert got.count(b"HTTP/1.1 ") == 1
            assert len(got) < 5 * MIB
        else:
            await wait_until(lambda: room.servers[second].ongoing == 1)
            handler.go.set()
            await wait_until(lambda: handler.ended == [f"/wait/{MIB}"])
            # the first one was too late
            assert client.socket.fileno() >= 0
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
        client.socket.close()
        await wait_until(lambda: ongoing(room) == 0)


async def test_who_is_refused_lets_go_and_another_answers(wrote: list[int]) -> None:
    handler = Waiting()
    async with Room() as room:
        room.route(room.replica(handler, limit=1))
        await warm(room)
        wrote.clear()
        clients = [Client(room) for _ in range(4)]
        for client in clients:
            await client.send(HEAD % f"wait/{MIB}")
        await wait_until(lambda: len(handler.begun) == 1 and room.caller.queued() != {})
        handler.go.set()
        assert [await client.answer() for client in clients] == [BODY[:MIB]] * 4
        assert wrote == [MIB] * 4
        for client in clients:
            client.socket.close()


async def test_what_the_line_has_no_room_for_goes_without_its_connection(
    room: Room, wrote: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()
    monkeypatch.setattr(PacketLine, "send", lambda *_: False)
    client = Client(room)
    for size in (3, LENT_EARLY_BYTES, MIB, 2 * MIB):
        await client.send(HEAD % f"whole/{size}")
        assert await client.answer() == BODY[:size]
    assert not wrote
    client.socket.close()
    await wait_until(lambda: open_descriptors() <= before + 1)


async def test_without_a_descriptor_to_spare_answers_go_through_the_proxy(
    room: Room, wrote: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    client = Client(room)
    for name in ("servd.proxy.http1_lending.new_right", "os.dup"):
        with monkeypatch.context() as patch:
            patch.setattr(name, none_left)
            await client.send(HEAD % f"whole/{LENT_EARLY_BYTES}")
            assert await client.answer() == BODY[:LENT_EARLY_BYTES]
    assert not wrote
    client.socket.close()


@pytest.mark.parametrize("count", [200, pytest.param(50_000, marks=pytest.mark.long)])
async def test_storms_leave_no_descriptor(wrote: list[int], count: int) -> None:
    chance = random.Random(count)
    handler = Waiting()
    async with Room() as room:
        room.route(room.replica(handler, limit=6))
        await warm(room)
        before = open_descriptors()

        async def one() -> None:
            path, size = chance.choice(
                [
                    (f"whole/{MIB}", MIB),
                    (f"whole/{2 * MIB}", 2 * MIB),
                    ("whole/100", 100),
                    ("stream/5/80000", 400_000),
                    ("hangs/3/70000", 210_000),
                    (f"wait/{MIB}", MIB),
                ]
            )
            if not path.startswith("wait"):
                await ask_once(room, path, size, leaves=path.startswith("hangs") or chance.random() < 0.3)
                return
            client = Client(room)
            await client.send(HEAD % path)
            begun = len(handler.begun)
            await wait_until(lambda: len(handler.begun) > begun or handler.go.is_set() or ongoing(room) == 6)
            client.socket.close()

        for _ in range(count // 10):
            handler.go.set()
            await asyncio.gather(*(one() for _ in range(5)))
            handler.go.clear()
            await asyncio.gather(*(one() for _ in range(5)))
        handler.go.set()
        await wait_until(lambda: ongoing(room) == 0)
        await wait_until(lambda: open_descriptors() <= before)
        assert len(wrote) > count // 4


async def test_small_answers_teach_the_proxy_to_keep_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    lent: list[int] = []
    lend = HttpLending._lend_with_request

    def noted(connection: HttpLending, call_id: int, outbox: Any) -> int:
        lent.append(lend(connection, call_id, outbox))
        return lent[-1]

    monkeypatch.setattr(HttpLending, "_lend_with_request", noted)
    size = MIB

    async def varying(exchange: HttpExchange) -> None:
        await exchange.answer(200, [], BODY[:size])

    async with Room() as room:
        room.route(room.replica(varying))
        client = Client(room)
        for size in (MIB, MIB, MIB, MIB, 3, 3, 3, MIB, MIB, MIB):
            await client.send(HEAD % "one")
            assert await client.answer() == BODY[:size]
        # after two large ones, until one was small; the next ones would have to make up for it
        assert 2 <= len([flags for flags in lent if flags]) <= 3
        client.socket.close()


def test_which_targets_have_large_answers() -> None:
    target = Target("/", "app", RequestRouter("app_D", random.Random(1)), None)

    def after(news: str) -> bool:
        for kind in news:
            (target.note_large if kind == "L" else target.note_lent_in_vain)()
        return target.is_lent_early

    assert not after("L")
    assert after("L")
    assert not after("v")
    assert not after("LLLLLLL")
    assert after("L")
    assert after("L" * 100)
    assert after("v")
    assert not after("v")
    assert not after("v" * 1000)
    assert not after("L" * 65)
    assert after("L")


def test_one_of_both_has_the_right() -> None:
    right = new_right()
    copy = os.dup(right)
    assert not os.get_inheritable(right)
    assert take_right(copy)
    assert not take_right(right)
    assert not take_right(copy)
    os.close(right)
    os.close(copy)
    assert not take_right(right)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_what_comes_with_an_envelope_is_closed_with_it(missing: int) -> None:
    gc.collect()
    before, hidden = open_descriptors(), set(descendants._hidden)
    ends = [*os.pipe(), new_right(), new_right()]
    given = given_with((5, 7), ends[: len(ends) - missing])
    taken = given.take(5)
    assert (taken is not None) == (not missing)
    assert given.take(5) is None
    assert len(given) == (0 if missing else 1)
    if taken is not None:
        assert set(ends) <= descendants._hidden, "forked children have none of them"
        taken.close()
    del given, taken
    gc.collect()
    for end in ends[len(ends) - missing :]:
        os.close(end)
    assert open_descriptors() == before
    assert not (descendants._hidden - hidden)


def test_copies_are_made_where_there_is_room() -> None:
    before = open_descriptors()
    given, end = Given(), new_right()
    added = [given.add_copies(number, end, end) for number in range(100)]
    assert added == [True] * 64 + [False] * 36
    assert len(given.descriptors) == 128
    del given
    os.close(end)
    assert open_descriptors() == before
