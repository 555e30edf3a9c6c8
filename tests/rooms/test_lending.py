"""A replica that is lent a client's connection writes the body itself, and nobody can tell but by the time."""

import asyncio
import os
import random
import select
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from servd.ground import descendants
from servd.proxy.http1_lending import HttpLending
from servd.proxy.limits import Limits
from servd.replica.caller_peer import CallerPeer
from servd.replica.exchange import LENT_BYTES, HttpExchange
from servd.wire.began import lending_path
from servd.wire.lending import LendingDoor, LendingLine, Loan
from servd.wire.lent_socket import LentSocket
from tests.fakes import Room, new_address, wait_until

MIB = 1024 * 1024
BODY = random.Random(5).randbytes(5 * MIB)
HEAD = "GET /%s HTTP/1.1\r\nhost: test\r\n\r\n"


async def stream(exchange: HttpExchange, pieces: list[bytes], headers: list[tuple[bytes, bytes]]) -> None:
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})


async def serve(exchange: HttpExchange) -> None:
    """Does what the path says: `whole/SIZE`, `stream/PIECES/SIZE`; `sized` says a length, `short` and `long` a wrong one."""
    kind, *numbers = exchange.scope["path"].strip("/").split("/")
    first, second = (*map(int, numbers), 0, 0)[:2]
    if kind == "whole":
        await exchange.answer(200, [(b"x-kind", b"whole")], BODY[:first])
        return
    pieces = [BODY[number * second : (number + 1) * second] for number in range(first)]
    length = {"sized": first * second, "short": first * second + 1, "long": first * second - 1}.get(kind)
    await stream(exchange, pieces, [] if length is None else [(b"content-length", b"%d" % length)])
    if kind == "fails":
        raise RuntimeError("in the midst")
    if kind == "hangs":
        await asyncio.Event().wait()
    await exchange.send({"type": "http.response.body", "body": b""})


@pytest.fixture
def loans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int | None]]:
    """Length of the body of each loan that was sent."""
    sent: list[int | None] = []
    lend = LendingLine.lend

    def noted(line: LendingLine, loan: Loan, descriptor: int) -> bool:
        is_sent = lend(line, loan, descriptor)
        if is_sent:
            sent.append(loan.left)
        return is_sent

    on_wrote = HttpLending.on_wrote

    def noted_with_request(connection: HttpLending, status: int, size: int, left: int | None) -> None:
        sent.append(None if left is None else size + left)
        on_wrote(connection, status, size, left)

    monkeypatch.setattr(LendingLine, "lend", noted)
    # once a URL is known for large answers
    monkeypatch.setattr(HttpLending, "on_wrote", noted_with_request)
    return sent


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with Room(hand_over=True) as made:
        made.route(made.replica(serve))
        yield made


class Client:
    """One connection that reads when it is told to."""

    def __init__(self, room: Room) -> None:
        self.socket = socket.create_connection(("127.0.0.1", room.port))
        self.socket.setblocking(False)
        self._got = b""

    async def send(self, text: str) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, text.encode())

    async def _more(self) -> bool:
        async with asyncio.timeout(10):
            data = await asyncio.get_running_loop().sock_recv(self.socket, MIB)
        self._got += data
        return bool(data)

    async def _take(self, size: int) -> bytes:
        while len(self._got) < size:
            assert await self._more(), f"ended after {len(self._got)} bytes"
        taken, self._got = self._got[:size], self._got[size:]
        return taken

    async def _line(self) -> bytes:
        while b"\r\n" not in self._got:
            assert await self._more()
        line, _, self._got = self._got.partition(b"\r\n")
        return line

    async def answer(self) -> bytes:
        """Body of the next answer; AssertionError where it is cut short."""
        headers = []
        while line := await self._line():
            headers.append(line)
        assert headers[0] == b"HTTP/1.1 200 OK"
        lengths = [int(line[15:]) for line in headers if line.startswith(b"content-length:")]
        if lengths:
            return await self._take(lengths[0])
        parts = []
        while size := int(await self._line(), 16):
            parts.append(await self._take(size))
            assert await self._take(2) == b"\r\n"
        assert await self._take(2) == b"\r\n"
        return b"".join(parts)

    async def rest(self) -> bytes:
        """What comes to the end of the connection."""
        try:
            while await self._more():
                pass
        except ConnectionError:
            pass
        return self._got


async def ask_once(room: Room, path: str, size: int, *, leaves: bool) -> None:
    """One request on a connection of its own. leaves: in the midst of the answer."""
    client = Client(room)
    try:
        await client.send(HEAD % path)
        if leaves:
            # the size of the head at least
            await client._take(50)
        else:
            assert await client.answer() == BODY[:size]
    finally:
        client.socket.close()


def ongoing(room: Room) -> int:
    return sum(server.ongoing for server in room.servers.values())


def open_exchanges(room: Room) -> list[HttpExchange]:
    """Requests that have not ended."""
    links = [server._link for server in room.servers.values() if server._link is not None]
    peers = [peer for link in links for peer in link.peers.values() if isinstance(peer, CallerPeer)]
    return [work for peer in peers for work in peer.open.values() if isinstance(work, HttpExchange)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("path", "size", "is_lent"),
    [
        (f"whole/{LENT_BYTES - 1}", LENT_BYTES - 1, False),
        (f"whole/{LENT_BYTES}", LENT_BYTES, True),
        (f"whole/{MIB}", MIB, True),
        (f"whole/{MIB + 1}", MIB + 1, True),
        (f"whole/{5 * MIB}", 5 * MIB, True),
        ("stream/1/5", 5, False),
        ("stream/2/5", 10, False),
        ("stream/100/1000", 100_000, False),
        ("stream/2/70000", 140_000, True),
        (f"stream/1/{LENT_BYTES}", LENT_BYTES, True),
        (f"stream/5/{MIB}", 5 * MIB, True),
        (f"stream/2/{2 * MIB}", 4 * MIB, True),
        ("sized/1/5", 5, False),
        ("sized/3/70000", 210_000, True),
        (f"sized/5/{MIB}", 5 * MIB, True),
    ],
)
async def test_bodies_arrive_whole_and_the_connection_goes_on(
    room: Room, loans: list[int | None], path: str, size: int, is_lent: bool
) -> None:
    client = Client(room)
    for _ in range(2):
        await client.send(HEAD % path)
        assert await client.answer() == BODY[:size]
    # pipelined behind each other, and something small after it
    await client.send(HEAD % path + HEAD % "whole/3" + HEAD % path)
    assert [await client.answer() for _ in range(3)] == [BODY[:size], BODY[:3], BODY[:size]]
    assert len(loans) == (4 if is_lent else 0)
    await wait_until(lambda: ongoing(room) == 0)
    client.socket.close()


async def test_what_else_http_allows_goes_on_as_before(room: Room, loans: list[int | None]) -> None:
    head = (await room.get(f"/whole/{MIB}", method="HEAD")).lower()
    assert head.endswith(b"\r\n\r\n")
    assert b"content-length: %d" % MIB in head
    assert not loans
    assert (await room.get(f"/whole/{MIB}")).endswith(BODY[MIB - 100 : MIB])
    old = await room.raw(b"GET /whole/%d HTTP/1.0\r\n\r\n" % MIB)
    assert old.endswith(BODY[MIB - 100 : MIB])
    old = await room.raw(b"GET /stream/5/1000 HTTP/1.0\r\n\r\n")
    assert old.endswith(b"\r\n\r\n" + BODY[:5000])


async def test_who_reads_nothing_holds_up_no_small_body(room: Room, loans: list[int | None]) -> None:
    client = Client(room)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    await client.send(HEAD % f"whole/{MIB}" * 6)
    # the first ones are on their way, and their slots are free: what was not taken lies in the proxy, as it always did
    await wait_until(lambda: bool(loans) and ongoing(room) == 0)
    assert [await client.answer() for _ in range(6)] == [BODY[:MIB]] * 6
    client.socket.close()


async def test_a_slow_reader_gets_all_of_a_large_body(room: Room, loans: list[int | None]) -> None:
    async with Room(hand_over=True) as small:
        small.route(small.replica(serve))
        client = Client(small)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await client.send(HEAD % f"whole/{5 * MIB}")
        await wait_until(lambda: loans == [5 * MIB])
        assert await client.answer() == BODY
        await wait_until(lambda: ongoing(small) == 0)
        client.socket.close()
    assert ongoing(room) == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("fails/5/70000", BODY[:350_000]),
        ("short/5/70000", BODY[:350_000]),
        (f"short/1/{LENT_BYTES}", BODY[:LENT_BYTES]),
        ("long/5/70000", BODY[:280_000]),
    ],
)
async def test_what_is_not_whole_never_looks_whole(
    room: Room, loans: list[int | None], path: str, expected: bytes
) -> None:
    client = Client(room)
    await client.send(HEAD % path)
    got = await client.rest()
    assert loans
    assert not got.endswith(b"0\r\n\r\n")
    if b"chunked" not in got:
        assert got.partition(b"\r\n\r\n")[2] == expected
    await wait_until(lambda: ongoing(room) == 0)
    client.socket.close()


async def test_a_time_limit_ends_the_connection(loans: list[int | None]) -> None:
    async with Room(limits=Limits(request_s=0.3)) as room:
        room.route(room.replica(serve))
        client = Client(room)
        await client.send(HEAD % "hangs/3/70000")
        got = await client.rest()
        assert loans == [None]
        assert not got.endswith(b"0\r\n\r\n")
        await wait_until(lambda: ongoing(room) == 0)
        client.socket.close()


@pytest.mark.parametrize("path", ["hangs/3/70000", f"whole/{5 * MIB}"])
async def test_a_client_that_leaves_is_noticed_and_nothing_stays_open(
    room: Room, loans: list[int | None], path: str
) -> None:
    warm = Client(room)
    await warm.send(HEAD % "stream/2/70000")
    await warm.answer()
    before = open_descriptors()
    for number in range(20):
        client = Client(room)
        await client.send(HEAD % path)
        await wait_until(lambda number=number: len(loans) == number + 2 and ongoing(room) == 1)
        client.socket.close()
        await wait_until(lambda: ongoing(room) == 0)
    await wait_until(lambda: open_descriptors() <= before)
    warm.socket.close()


async def test_without_a_line_bodies_go_through_the_proxy(
    room: Room, loans: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LendingLine, "lend", lambda *_: False)
    client = Client(room)
    for path, size in ((f"whole/{MIB}", MIB), (f"whole/{5 * MIB}", 5 * MIB), ("stream/30/70000", 2_100_000)):
        await client.send(HEAD % path)
        assert await client.answer() == BODY[:size]
    assert not loans
    client.socket.close()


async def test_a_loan_that_does_not_come_is_given_up(
    room: Room, monkeypatch: pytest.MonkeyPatch, loans: list[int | None]
) -> None:
    monkeypatch.setattr("servd.wire.borrowing._ASK_S", 0.05)
    # it says that it has sent it
    monkeypatch.setattr(LendingLine, "lend", lambda *_: True)
    client = Client(room)
    for path, size in ((f"whole/{MIB}", MIB), ("stream/30/70000", 2_100_000)):
        await client.send(HEAD % path)
        assert await client.answer() == BODY[:size]
    assert not loans
    client.socket.close()


@pytest.mark.parametrize("is_sized", [False, True])
async def test_a_piece_that_is_broken_off_ends_the_connection(loans: list[int | None], is_sized: bool) -> None:
    piece, errors = BODY[: 4 * MIB], []

    async def impatient(exchange: HttpExchange) -> None:
        length = [(b"content-length", b"%d" % (3 * len(piece)))] if is_sized else []
        await exchange.send({"type": "http.response.start", "status": 200, "headers": length})
        for _ in range(3):
            try:
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                await asyncio.wait_for(exchange.send(message), 0.1)
            except (TimeoutError, OSError) as error:
                errors.append(type(error))
        await exchange.send({"type": "http.response.body", "body": b""})

    async with Room() as room:
        room.route(room.replica(impatient))
        client = Client(room)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await client.send(HEAD % "" + HEAD % "")
        await wait_until(lambda: len(errors) >= 2 and ongoing(room) == 0)
        got = await client.rest()
        assert TimeoutError in errors
        assert got.count(b"HTTP/1.1 ") == 1, "what is too much would be read as the next answer"
        assert not got.endswith(b"0\r\n\r\n")
        assert loans
        client.socket.close()


async def test_tasks_that_send_at_once_take_turns(loans: list[int | None]) -> None:
    pieces = [bytes([65 + number]) * MIB for number in range(6)]

    async def together(exchange: HttpExchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        async with asyncio.TaskGroup() as group:
            for piece in pieces:
                group.create_task(
                    exchange.send({"type": "http.response.body", "body": piece, "more_body": True})  # type: ignore[arg-type]
                )
        await exchange.send({"type": "http.response.body", "body": b""})

    async with Room() as room:
        room.route(room.replica(together))
        client = Client(room)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        for _ in range(2):
            await client.send(HEAD % "")
            got = await client.answer()
            assert sorted(got[start : start + MIB] for start in range(0, 6 * MIB, MIB)) == pieces
        assert loans
        client.socket.close()


async def test_a_default_time_limit_of_sockets_is_not_for_what_is_lent(
    loans: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servd.wire.borrowing._WORD_S", 0.05)

    def is_full(room: Room) -> bool:
        lent = [exchange._borrowed._lent for exchange in open_exchanges(room) if exchange._borrowed]
        return any(each is not None and not select.select([], [each._socket], [], 0)[1] for each in lent)

    async with Room() as room:
        room.route(room.replica(serve))
        client = Client(room)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        socket.setdefaulttimeout(0.01)
        try:
            await client.send(HEAD % "stream/50/100000")
            await wait_until(lambda: is_full(room))
            assert await client.answer() == BODY[:5_000_000]
            assert loans
        finally:
            socket.setdefaulttimeout(None)
        client.socket.close()


async def test_the_last_descriptors_of_a_replica_are_not_for_loans(
    room: Room, loans: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servd.ground.host_limits.descriptor_limit", lambda: 5)
    client = Client(room)
    await client.send(HEAD % f"whole/{MIB}")
    assert await client.answer() == BODY[:MIB]
    assert loans
    client.socket.close()


@pytest.fixture
async def door() -> AsyncIterator[tuple[LendingDoor, LendingLine]]:
    address = new_address()
    door = LendingDoor(asyncio.get_running_loop(), address)
    assert door.open()
    assert door.open()
    line = LendingLine(address)
    yield door, line
    line.close()
    door.close()
    assert not os.path.lexists(lending_path(address) or "")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of what is lent."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def expect(door: LendingDoor, key: int, call_id: int) -> list[LentSocket | None]:
    """What comes for that call."""
    news: list[LentSocket | None] = []
    door.expect(key, call_id, news.append)
    return news


async def test_a_line_carries_descriptors(
    door: tuple[LendingDoor, LendingLine], pair: tuple[socket.socket, socket.socket]
) -> None:
    first, second, other = expect(door[0], 7, 2**63), expect(door[0], 8, 1), expect(door[0], 8, 2)
    before = open_descriptors()
    for loan in (Loan(7, 2**63, 5), Loan(8, 1, None), Loan(9, 9, 9)):
        assert door[1].lend(loan, pair[1].fileno())
    await wait_until(lambda: bool(first and second))
    lent = first[0]
    assert lent is not None
    assert not os.get_inheritable(lent._socket.fileno())
    pieces = lent.frame(memoryview(b"hello"))
    lent.write_some(pieces)
    assert not pieces
    assert pair[0].recv(10) == b"hello"
    lent.count(5)
    with pytest.raises(ValueError, match="longer"):
        lent.frame(memoryview(b"!"))
    for each in (lent, lent, second[0]):
        assert each is not None
        each.close()
    # the line itself has two ends here; what nobody expects is closed
    await wait_until(lambda: open_descriptors() <= before + 2)
    assert not other


async def test_a_line_that_is_idle_is_closed_and_opened_again(
    room: Room, loans: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servd.calls.replica_peer._LENDING_IDLE_S", 0.02)
    client = Client(room)
    assert (await room.get("/whole/3")).endswith(BODY[:3])
    before = open_descriptors()
    for number in range(2):
        await client.send(HEAD % f"whole/{MIB}")
        assert await client.answer() == BODY[:MIB]
        assert len(loans) == number + 1
        # the replica's door stays open
        await wait_until(lambda: open_descriptors() <= before + 1)
    client.socket.close()


async def test_a_caller_that_closes_its_line_takes_no_loan_from_others(
    door: tuple[LendingDoor, LendingLine], pair: tuple[socket.socket, socket.socket]
) -> None:
    waiting, taken = expect(door[0], 1, 2), expect(door[0], 3, 4)
    other = LendingLine("ipc://" + (door[1]._path or "").removesuffix(".lend"))
    assert other.lend(Loan(3, 4, 5), pair[1].fileno())
    other.close()
    await wait_until(lambda: bool(taken) and not door[0]._lines)
    assert taken[0] is not None
    taken[0].close()
    assert not waiting


@pytest.mark.parametrize("packet", [b"short", b"x" * 24, b"x" * 100])
async def test_nonsense_on_a_line_harms_nobody(
    door: tuple[LendingDoor, LendingLine], pair: tuple[socket.socket, socket.socket], packet: bytes
) -> None:
    waiting = expect(door[0], 1, 2)
    other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.connect(door[1]._path or "")
    other.send(packet)
    other.close()
    # a packet may have been a loan for it
    await wait_until(lambda: waiting == [None])
    waiting = expect(door[0], 1, 2)
    assert door[1].lend(Loan(1, 2, 3), pair[1].fileno())
    await wait_until(lambda: bool(waiting))
    assert waiting[0] is not None
    waiting[0].close()


@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_line_finds_a_door_that_was_opened_again(
    door: tuple[LendingDoor, LendingLine], pair: tuple[socket.socket, socket.socket], is_removed: bool
) -> None:
    for is_first in (True, False):
        news = expect(door[0], 1, 2)
        assert door[1].lend(Loan(1, 2, 3), pair[1].fileno())
        await wait_until(lambda news=news: bool(news))
        assert news[0] is not None
        news[0].close()
        if is_first:
            if is_removed:
                os.unlink(door[1]._path or "")
            else:
                door[0].close()
                assert not door[1].lend(Loan(1, 2, 3), pair[1].fileno())
            assert door[0].open()


async def test_children_that_user_code_forks_do_not_hold_what_is_lent() -> None:
    ours, theirs = socket.socketpair()
    lent = LentSocket(asyncio.get_running_loop(), os.dup(theirs.fileno()), 5)
    assert theirs.fileno() not in descendants._hidden
    descriptor = lent._socket.fileno()
    assert descriptor in descendants._hidden
    lent.close()
    assert descriptor not in descendants._hidden
    ours.close()
    theirs.close()


@pytest.mark.parametrize("count", [150, pytest.param(50_000, marks=pytest.mark.long)])
async def test_storms_of_loans_leave_no_descriptor(room: Room, loans: list[int | None], count: int) -> None:
    chance = random.Random(count)
    warm = Client(room)
    await warm.send(HEAD % "stream/2/70000")
    await warm.answer()
    before = open_descriptors()

    async def one() -> None:
        path, size = chance.choice(
            [
                (f"whole/{MIB}", MIB),
                (f"whole/{2 * MIB}", 2 * MIB),
                ("stream/5/80000", 400_000),
                ("hangs/3/70000", 210_000),
            ]
        )
        await ask_once(room, path, size, leaves=path.startswith("hangs") or chance.random() < 0.3)

    for _ in range(count // 10):
        await asyncio.gather(*(one() for _ in range(10)))
    await wait_until(lambda: ongoing(room) == 0)
    await wait_until(lambda: open_descriptors() <= before)
    assert len(loans) > count // 3
    warm.socket.close()
