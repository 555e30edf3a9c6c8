"""A replica that is lent a client's connection reads the body itself, and nobody can tell but by the time."""

import asyncio
import contextlib
import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from servd.wire.body_loan import LENT_BODY_BYTES
from servd.wire.lending import LendingDoor, LendingLine, Loan
from servd.wire.uploading import Uploading
from servd.wire.write_right import close_all
from tests.fakes import Room, hello, new_address, wait_until

MIB = 1024 * 1024
BODY = random.Random(7).randbytes(6 * MIB)
HEAD = "%s /%s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n%s\r\n"


async def read(exchange: HttpExchange) -> bytes | None:
    """The whole body; None where its client left before its end."""
    pieces: list[bytes] = []
    while (message := await exchange.receive())["type"] == "http.request":
        pieces.append(message["body"])
        if not message["more_body"]:
            return b"".join(pieces)
    return None


async def serve(exchange: HttpExchange) -> None:
    """Answers what came, or does what the path says."""
    what = exchange.scope["path"].strip("/")
    if what == "early":
        exchange.finish(200, [], b"early")
    elif what == "fail":
        raise RuntimeError("on purpose")
    elif what == "hang":
        await asyncio.Event().wait()
    elif what == "begin":
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.Event().wait()
    else:
        body = await read(exchange)
        if body is not None:
            is_right = body == BODY[: len(body)]
            if what == "echo":
                await exchange.answer(200, [], body)
            else:
                exchange.finish(200, [], b"%d %s" % (len(body), b"right" if is_right else b"wrong"))


@pytest.fixture
def loans(monkeypatch: pytest.MonkeyPatch) -> list[Loan]:
    """Bodies of requests that were lent."""
    sent: list[Loan] = []
    lend = LendingLine.lend

    def noted(line: LendingLine, loan: Loan, descriptor: int) -> bool:
        is_sent = lend(line, loan, descriptor)
        if is_sent and loan.is_request:
            sent.append(loan)
        return is_sent

    monkeypatch.setattr(LendingLine, "lend", noted)
    return sent


class Client:
    """One connection."""

    def __init__(self, room: Room) -> None:
        self.socket = socket.create_connection(("127.0.0.1", room.port))
        self.socket.setblocking(False)
        self._got = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def post(
        self, path: str, size: int, *, method: str = "POST", headers: str = "", sent: int | None = None
    ) -> None:
        """Head and body; of the body `sent` bytes, where that is given."""
        await self.send((HEAD % (method, path, size, headers)).encode() + BODY[: size if sent is None else sent])

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next one."""
        while b"\r\n\r\n" not in self._got:
            assert await self._more(), f"ended after {self._got!r}"
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._got) < size:
            assert await self._more()
        body, self._got = self._got[:size], self._got[size:]
        return int(head.split()[1]), head, body

    async def asked(self, path: str, size: int, **options: Any) -> tuple[int, bytes, bytes]:
        """Answer to a request that is sent while it is waited for."""
        sending = asyncio.create_task(self.post(path, size, **options))
        try:
            return await self.answer()
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending

    async def has_ended(self) -> bool:
        """Whether nothing comes but the end."""
        try:
            return not await self._more()
        except ConnectionError:
            return True

    async def _more(self) -> bool:
        async with asyncio.timeout(10):
            data = await asyncio.get_running_loop().sock_recv(self.socket, MIB)
        self._got += data
        return bool(data)


@contextlib.asynccontextmanager
async def a_room(
    handler: Callable[[HttpExchange], Awaitable[None]] = serve, *, limit: int = 100, **options: Any
) -> AsyncIterator[Room]:
    """A room whose replica has said that bodies may be lent to it."""
    async with Room(**options) as room:
        room.route(room.replica(handler, limit=limit))
        await ask_for_loans(room)
        yield room


async def ask_for_loans(room: Room) -> None:
    """Send each replica a large body: each says then that the next may be lent."""
    for address, server in list(room.servers.items()):
        user, server._user = server._user, FAKE
        room.route(address)
        assert b" 200 " in (await room.get(method="POST", body=BODY[:LENT_BODY_BYTES]))[:20]
        server._user = user
    room.route(*room.servers)


class _Fake:
    routes = ()

    async def handle_http(self, exchange: HttpExchange) -> None:
        await hello(exchange)


FAKE: Any = _Fake()


def ongoing(room: Room) -> int:
    return sum(server.ongoing for server in room.servers.values())


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [LENT_BODY_BYTES - 1, 700_000, 1_000_000, MIB, MIB + 1, 3 * MIB, 6 * MIB])
async def test_bodies_arrive_whole_and_the_connection_goes_on(size: int, loans: list[Loan]) -> None:
    async with a_room(hand_over=True) as room:
        client = Client(room)
        for _ in range(4):
            assert (await client.asked("", size))[2] == b"%d right" % size
        assert bool(loans) == (size > LENT_BODY_BYTES)
        # pipelined behind each other, small ones between
        sent = (HEAD % ("POST", "", size, "")).encode() + BODY[:size]
        small = (HEAD % ("POST", "", 3, "")).encode() + BODY[:3]
        sending = asyncio.create_task(client.send(sent + small + small + sent + sent + small))
        answers = [(await client.answer())[2] for _ in range(6)]
        assert answers == [b"%d right" % count for count in (size, 3, 3, size, size, 3)]
        await sending
        await wait_until(lambda: ongoing(room) == 0)
        client.socket.close()


async def test_what_is_lent_up_and_down_on_one_connection(loans: list[Loan]) -> None:
    async with a_room() as room:
        client = Client(room)
        for size in (MIB, 3 * MIB, 5, 6 * MIB):
            assert (await client.asked("echo", size))[2] == BODY[:size]
        assert len(loans) >= 2
        client.socket.close()


async def test_which_bodies_are_lent(loans: list[Loan]) -> None:
    size = 900_000
    chunked = b"".join(b"%x\r\n%b\r\n" % (100_000, BODY[at : at + 100_000]) for at in range(0, size, 100_000))
    async with a_room() as room:
        client = Client(room)
        # what is read whole may be sent again, if its method allows it
        assert (await client.asked("", size, method="PUT"))[2] == b"%d right" % size
        assert (await client.asked("", size, headers="x-request-disconnect-disabled: ?1\r\n"))[2] == b"%d right" % size
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n")
        assert (await client.answer())[2] == b"%d right" % size
        assert not loans
        assert (await client.asked("", 3 * MIB, method="PUT"))[2] == b"%d right" % (3 * MIB)
        assert (await client.asked("", size))[2] == b"%d right" % size
        assert len(loans) == 2
        client.socket.close()


async def test_a_client_that_expects_is_told_to_go_on_and_read_from_by_the_replica(loans: list[Loan]) -> None:
    async with a_room(limits=Limits(body_bytes=4 * MIB)) as room:
        client = Client(room)
        await client.post("", 3 * MIB, headers="expect: 100-continue\r\n", sent=0)
        while b"\r\n\r\n" not in client._got:
            assert await client._more()
        assert client._got == b"HTTP/1.1 100 Continue\r\n\r\n"
        client._got = b""
        sending = asyncio.create_task(client.send(BODY[: 3 * MIB]))
        assert (await client.answer())[2] == b"%d right" % (3 * MIB)
        await sending
        assert len(loans) == 1
        await client.post("", 5 * MIB, headers="expect: 100-continue\r\n", sent=0)
        assert (await client.answer())[0] == 413
        client.socket.close()


async def test_who_sends_slowly_holds_no_slot_with_a_small_body(loans: list[Loan]) -> None:
    async with a_room() as room:
        client = Client(room)
        await client.post("", MIB, sent=300_000)
        await wait_until(lambda: [len(each._body) for each in room.listener.connections] == [300_000])  # type: ignore[attr-defined]
        assert not ongoing(room)
        await client.send(BODY[300_000:MIB])
        assert (await client.answer())[2] == b"%d right" % MIB
        client.socket.close()
    assert len(loans) <= 1


@pytest.mark.parametrize(("size", "is_kept"), [(MIB, True), (6 * MIB, False)])
async def test_who_answers_without_reading(size: int, is_kept: bool, loans: list[Loan]) -> None:
    async with a_room() as room:
        client = Client(room)
        for path, status in (("early", 200), ("fail", 500)):
            got, head, _ = await client.asked(path, size)
            assert got == status
            if is_kept:
                assert b"connection: close" not in head
            else:
                assert b"connection: close" in head
                client.socket.close()
                client = Client(room)
        assert len(loans) == 2
        await wait_until(lambda: ongoing(room) == 0)
        client.socket.close()


@pytest.mark.parametrize("ends", ["closes", "resets", "closes its half"])
@pytest.mark.parametrize("path", ["", "hang", "begin"])
async def test_who_leaves_in_the_midst_is_noticed(path: str, ends: str, loans: list[Loan]) -> None:
    async with a_room() as room:
        warm = open_descriptors()
        for _ in range(3):
            client = Client(room)
            # so much is with the proxy when it lends the body: of more the end might lie with the client, behind a full buffer
            await client.post(path, 3 * MIB, sent=MIB)
            await wait_until(lambda: ongoing(room) == 1)
            if ends == "resets":
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if ends == "closes its half":
                client.socket.shutdown(socket.SHUT_WR)
            else:
                client.socket.close()
            async with asyncio.timeout(5):
                while ongoing(room) or room.listener.connections:
                    # the proxy's second hand
                    room.listener.turn()
                    await asyncio.sleep(0.01)
            client.socket.close()
        assert len(loans) == 3
        await wait_until(lambda: open_descriptors() <= warm + 2)


async def test_who_sends_no_more_for_too_long_is_refused(loans: list[Loan]) -> None:
    async with a_room(limits=Limits(idle_s=0.2)) as room:
        client = Client(room)
        await client.post("", 3 * MIB, sent=2 * MIB)
        await wait_until(lambda: ongoing(room) == 1)

        async def tick() -> None:
            while True:
                room.listener.turn()
                await asyncio.sleep(0.02)

        ticking = asyncio.create_task(tick())
        status, _, text = await client.answer()
        assert (status, text) == (408, b"the request's body took too long")
        ticking.cancel()
        await wait_until(lambda: ongoing(room) == 0)
        assert len(loans) == 1
        client.socket.close()


async def test_a_time_limit_ends_a_request_whose_body_does_not_come(loans: list[Loan]) -> None:
    async with a_room(limits=Limits(request_s=0.3)) as room:
        client = Client(room)
        await client.post("", 3 * MIB, sent=2 * MIB)
        status, _, text = await client.answer()
        assert (status, text) == (408, b"The time limit of 0.3 s passed while reading the body.")
        assert loans
        assert await client.has_ended()
        client.socket.close()


async def test_an_answer_that_is_cut_ends_its_connection_though_the_replica_keeps_the_body(
    loans: list[Loan], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_room(limits=Limits(request_s=0.2)) as room:
        with monkeypatch.context() as patch:
            # one that hangs does not hear that the request is over
            patch.setattr(Uploading, "end", lambda _: None)
            client = Client(room)
            await client.post("begin", 3 * MIB, sent=MIB)
            while not await client.has_ended():
                pass
            assert client._got.endswith(b"begun\r\n")
            assert loans
            uploads = [each for each in gc.get_objects() if type(each) is Uploading and each._socket is not None]
        for upload in uploads:
            upload.end()
        client.socket.close()


async def test_who_takes_nothing_makes_the_client_wait(loans: list[Loan]) -> None:
    go_on = asyncio.Event()

    async def slow(exchange: HttpExchange) -> None:
        await go_on.wait()
        await serve(exchange)

    async with a_room(slow) as room:
        client = Client(room)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sending = asyncio.create_task(client.post("", 6 * MIB))
        await wait_until(lambda: ongoing(room) == 1)
        (exchange,) = [work for peer in _peers(room) for work in peer.open.values()]
        await wait_until(lambda: exchange.upload is not None and exchange.upload._waiting >= MIB)
        assert loans
        # its beginning, which the proxy had read, may be larger than what is read ahead by one read
        assert sum(len(message["body"]) for message in exchange._events) <= MIB + 256_000
        go_on.set()
        assert (await client.answer())[2] == b"%d right" % (6 * MIB)
        await sending
        client.socket.close()


def _peers(room: Room) -> list[Any]:
    links: list[Any] = [server._link for server in room.servers.values()]
    return [peer for link in links for peer in link.peers.values()]


async def test_a_full_replica_reads_nothing_and_another_does(loans: list[Loan]) -> None:
    async with Room() as room:
        addresses = [room.replica(serve, limit=1), room.replica(serve, limit=1)]
        await ask_for_loans(room)
        # links are made by threads of ZeroMQ: one that is not yet would be counted later only
        candidates = room.caller.router_of("app_Echo").candidates
        await wait_until(lambda: [each.limit for each in candidates] == [1, 1])
        before = open_descriptors()
        clients = [Client(room) for _ in range(6)]
        answers = await asyncio.gather(*(client.asked("", size) for client in clients for size in (2 * MIB,)))
        assert [answer[2] for answer in answers] == [b"%d right" % (2 * MIB)] * 6
        for client in clients:
            client.socket.close()
        # two lines to each replica, for envelopes and for loans, have both their ends here
        await wait_until(lambda: open_descriptors() <= before + 4 * len(addresses))
        assert loans


async def test_a_body_that_comes_while_its_request_waits_is_not_lost() -> None:
    free = asyncio.Event()

    async def hold(exchange: HttpExchange) -> None:
        if exchange.scope["path"] == "/hold":
            await free.wait()
            exchange.finish(200, [], b"")
        else:
            await serve(exchange)

    async with Room() as room:
        room.route(room.replica(hold, limit=1))
        first, second = Client(room), Client(room)
        await first.post("hold", 0)
        await wait_until(lambda: ongoing(room) == 1)
        await second.post("", MIB + 100)
        await wait_until(lambda: bool(room.caller.queued()))
        (connection,) = [each for each in room.listener.connections if each._stream is not None]  # type: ignore[attr-defined]
        await wait_until(lambda: connection._stream.is_complete)  # type: ignore[attr-defined]
        free.set()
        assert (await second.answer())[2] == b"%d right" % (MIB + 100)
        for client in (first, second):
            client.socket.close()


@pytest.mark.parametrize("is_lent", [True, False])
async def test_a_replica_that_is_lost_amid_a_body(
    is_lent: bool, loans: list[Loan], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_lent:
        monkeypatch.setattr(LendingLine, "lend", lambda *_: False)
    async with a_room() as room:
        client = Client(room)
        await client.post("", 3 * MIB, sent=2 * MIB)
        await wait_until(lambda: ongoing(room) == 1)
        for server in room.servers.values():
            server.close()
        status, head, _ = await client.answer()
        assert (status, b"connection: close" in head) == (502, True)
        assert await client.has_ended()
        assert bool(loans) == is_lent
        client.socket.close()


async def test_a_proxy_that_is_lost_amid_a_body(loans: list[Loan]) -> None:
    async with a_room() as room:
        before = open_descriptors()
        client = Client(room)
        await client.post("", 3 * MIB, sent=2 * MIB)
        await wait_until(lambda: ongoing(room) == 1)
        room.caller.close()
        await wait_until(lambda: ongoing(room) == 0, 1.0)
        client.socket.close()
        room.caller.watch.close()
        await wait_until(lambda: open_descriptors() <= before + 2)
        assert loans


async def test_without_a_line_bodies_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_room() as room:
        client = Client(room)
        # the loan is lost on its way
        monkeypatch.setattr(LendingDoor, "body", lambda *_: None)
        for size in (700_000, 3 * MIB, 6 * MIB):
            assert (await client.asked("", size))[2] == b"%d right" % size
        monkeypatch.setattr(LendingLine, "lend", lambda *_: False)
        for size in (700_000, 3 * MIB, 6 * MIB):
            assert (await client.asked("", size))[2] == b"%d right" % size
        client.socket.close()


async def test_bodies_wait_at_the_door_for_their_requests() -> None:
    address = new_address()
    door, line = LendingDoor(asyncio.get_running_loop(), address), LendingLine(address)
    ours, theirs = socket.socketpair()
    try:
        assert door.open()
        before = open_descriptors()
        for call_id in range(6):
            assert line.lend(Loan(7, call_id, 10 * call_id, is_request=True), theirs.fileno())
        # it is there at once: no turn of the loop is needed
        lent = door.body(7, 3)
        assert lent is not None
        assert lent[1] == 30
        assert not os.get_inheritable(lent[0])
        close_all(lent[:1])
        assert door.body(7, 3) is None
        assert door.body(8, 4) is None
        door.refuse(7, 4)
        assert door.body(7, 4) is None
        door.leave(7)
        assert door.body(7, 5) is None
        assert open_descriptors() <= before + 2
        assert line.lend(Loan(7, 9, 1, is_request=True), theirs.fileno())
        await wait_until(lambda: bool(door._bodies))
    finally:
        line.close()
        door.close()
        ours.close()
        theirs.close()


async def test_a_door_takes_what_was_sent_whoever_came_first() -> None:
    address = new_address()
    door, lines = LendingDoor(asyncio.get_running_loop(), address), [LendingLine(address) for _ in range(3)]
    ours, theirs = socket.socketpair()
    try:
        assert door.open()
        for key, line in enumerate(lines):
            assert line.lend(Loan(key, 1, 10, is_request=True), theirs.fileno())
        lent = door.body(2, 1)
        assert lent is not None
        close_all(lent[:1])
        # its last loan, of a request that never came, has not been read when it is known to be gone
        assert lines[1].lend(Loan(1, 2, 10, is_request=True), theirs.fileno())
        lines[1].close()
        door.leave(1)
        lines[0].lend(Loan(0, 2, 10, is_request=True), theirs.fileno())
        await wait_until(lambda: (0, 2) in door._bodies)
        assert sorted(door._bodies) == [(0, 1), (0, 2)]
    finally:
        for line in lines:
            line.close()
        door.close()
        ours.close()
        theirs.close()


@pytest.mark.parametrize("count", [30, pytest.param(50_000, marks=pytest.mark.long)])
async def test_storms_of_loans_leave_no_descriptor(count: int, loans: list[Loan]) -> None:
    chance = random.Random(count)

    async with a_room(limits=Limits(body_bytes=5 * MIB)) as room:
        before = open_descriptors()

        async def one() -> None:
            path = chance.choice(["", "", "echo", "early", "fail"])
            size = chance.choice([600_000, 1_000_000, 2 * MIB, 3 * MIB])
            client = Client(room)
            sent = chance.choice([size, size, chance.randrange(size)])
            try:
                async with asyncio.timeout(chance.choice([0.002, 0.02, 5])):
                    if sent < size:
                        await client.post(path, size, sent=sent)
                    else:
                        status, _, body = await client.asked(path, size)
                        assert status == 500 if path == "fail" else body
                        assert path not in ("", "echo") or body in (b"%d right" % size, BODY[:size])
            except (TimeoutError, ConnectionError):
                pass
            client.socket.close()

        for _ in range(count // 10):
            await asyncio.gather(*(one() for _ in range(10)))
        await wait_until(lambda: ongoing(room) == 0)
        room.listener.turn()
        await wait_until(lambda: open_descriptors() <= before + 2, 10)
        assert len(loans) > count // 4
