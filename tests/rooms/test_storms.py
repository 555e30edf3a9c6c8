"""Counts never drift: whatever clients, callers and nonsense do, every slot is free in the end and the next request is served."""

import asyncio
import random
from typing import Any

import h2.exceptions
import msgpack
import pytest
import websockets
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servd.calls.pickling import dumps
from servd.calls.request_context import NO_REQUEST
from servd.exceptions import ProtocolError
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from servd.wire.records import CALL, HTTP, read_origin, unpack
from tests.fakes import Room, a_caller, routing_for, targets_for, wait_until
from tests.rooms.http2_client import Http2Client, Http2WebSocket

CLIENTS = 60
UNHURRIED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ODD_VALUES: tuple[Any, ...] = (None, -1, 0, 1, 2**40, b"", b"x", "x", [], [b"a"], {"a": 1}, 1.5, True)


async def talk(exchange: HttpExchange) -> None:
    """A WebSocket that says much and listens to the rest."""
    await exchange.send({"type": "websocket.accept"})
    for _ in range(20):
        await exchange.send({"type": "websocket.send", "bytes": b"x" * 100_000})
    while (await exchange.receive())["type"] != "websocket.disconnect":
        pass


async def work(exchange: HttpExchange) -> None:
    """Takes as long as the path says, in ms; some fail, some stream."""
    if exchange.scope["type"] == "websocket":
        await talk(exchange)
        return
    kind, _, delay = exchange.scope["path"].strip("/").partition("-")
    await asyncio.sleep(int(delay or 0) / 1000)
    if kind == "fail":
        raise RuntimeError("on purpose")
    if kind == "stream":
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await exchange.send({"type": "http.response.body", "body": b"x" * 200_000, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b""})
        return
    exchange.finish(200, [], b"done")


async def client(room: Room, rng: random.Random) -> None:
    """One client: asks, and then reads, waits, closes or resets."""
    kind = rng.choice(["get", "fail", "stream", "upload"])
    lines = [f"{'POST' if kind == 'upload' else 'GET'} /{kind}-{rng.randrange(8)} HTTP/1.1", "host: x"]
    body = b""
    if kind == "upload":
        body = b"x" * rng.choice([10, 3_000_000])
        lines.append(f"content-length: {len(body)}")
    if rng.random() < 0.3:
        lines.append(f"x-request-timeout-seconds: {rng.choice([0.001, 0.004, 1])}")
    if rng.random() < 0.5:
        lines.append("connection: close")
    data = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    try:
        writer.write(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data * rng.choice([1, 1, 3]))
        end = rng.random()
        if end < 0.4:
            async with asyncio.timeout(rng.choice([0.05, 0.2])):
                await reader.read()
        elif end < 0.8:
            await asyncio.sleep(rng.random() * 0.01)
        if end > 0.6:
            writer.transport.abort()
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()


async def http2_client(room: Room, rng: random.Random) -> None:
    """Some streams on one connection: bodies that stop, resets, WebSockets; and then reads, closes or cuts it."""
    async with Http2Client(room.port) as made:
        made.reads = rng.random() < 0.7
        try:
            async with asyncio.timeout(0.3):
                await made.get("/-/healthz")
                for _ in range(rng.choice([1, 4, 12])):
                    kind = rng.choice(["get", "fail", "stream", "upload", "websocket"])
                    if kind == "websocket":
                        socket = Http2WebSocket(made, "/")
                        stream = socket.stream_id
                        await socket.send("x" * rng.choice([1, 200_000]))
                    else:
                        stream = made.ask(f"/{kind}-{rng.randrange(8)}", "POST", end=kind != "upload")
                    if kind == "upload":
                        await made.send(stream, b"x" * rng.choice([10, 1_500_000]), end=rng.random() < 0.7)
                    if rng.random() < 0.4:
                        made.h2.reset_stream(stream)
                        made.flush()
                    elif rng.random() < 0.5:
                        await made.answer(stream)
        except (TimeoutError, h2.exceptions.ProtocolError):
            pass
        if rng.random() < 0.5:
            made.h2.close_connection()
            made.flush()
            made.writer.close()


async def websocket_client(room: Room, rng: random.Random) -> None:
    """One WebSocket: talks, listens, leaves in one of many ways."""
    try:
        socket = await websockets.connect(f"ws://127.0.0.1:{room.port}/", close_timeout=0.1)
    except (TimeoutError, websockets.WebSocketException, ConnectionError):
        return
    try:
        async with asyncio.timeout(0.5):
            for _ in range(rng.choice([0, 1, 5])):
                await socket.send("x" * rng.choice([1, 300_000]))
                if rng.random() < 0.5:
                    await socket.recv()
            if rng.random() < 0.5:
                await socket.close()
    except (TimeoutError, websockets.WebSocketException, ConnectionError):
        pass
    finally:
        socket.transport.abort()


async def call(room: Room, rng: random.Random) -> None:
    """One handle call, maybe given up."""
    deadline = asyncio.get_running_loop().time() + rng.choice([0.001, 0.005, 5])
    method = rng.choice(["slow", "many"])
    ticket: Any = room.caller.submit_call(
        "app_Echo", method, dumps(((), {})), NO_REQUEST, stream=method == "many", deadline=deadline
    )
    try:
        async with asyncio.timeout(rng.choice([0.002, 1])):
            if method == "many":
                async for _ in ticket:
                    if rng.random() < 0.1:
                        return
            else:
                await ticket
    except Exception:
        pass
    finally:
        ticket.cancel()


async def slow() -> bytes:
    """A handle call's method."""
    await asyncio.sleep(0.002)
    return b"x"


async def many() -> Any:
    """A stream's method."""
    for _ in range(20):
        yield b"x" * 100_000


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 60))])
async def test_counts_after_a_storm(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.proxy.websocket_form.GOODBYE_S", 0.05)
    monkeypatch.setattr("servd.proxy.http1_websocket.GOODBYE_S", 0.05)
    rng = random.Random(seed)
    # every other time WebSockets of plain HTTP/1.1 go through the proxy, as those of other lanes do
    async with Room(limits=Limits(body_bytes=5_000_000), hand_over=True, takes_websockets=seed % 2 == 0) as room:
        addresses = [room.replica(work, {"slow": slow, "many": many}, limit=limit) for limit in (1, 3)]
        room.route(*addresses, max_queued_requests=rng.choice([5, 1000]))
        kinds = [client, call] * CLIENTS + [http2_client, websocket_client] * (CLIENTS // 4)
        rng.shuffle(kinds)
        await asyncio.gather(*(kind(room, rng) for kind in kinds))
        router = room.caller.router_of("app_Echo")

        def left_over() -> dict[str, Any]:
            links: list[Any] = [server._link for server in room.servers.values()]
            peers = [peer for link in links for peer in link.peers.values()]
            state = {
                "pending": [call for c in router.candidates for call in c.peer.pending.values()],
                "counts": sum(server.admission.running + server.admission.held for server in room.servers.values()),
                "open": [peer.open for peer in peers if peer.open],
                "line": router.line,
                "connections": room.listener.connections,
                "handed over": room.lane.connections,
            }
            return {name: value for name, value in state.items() if value}

        def is_at_rest() -> bool:
            room.lane.turn()
            return not left_over()

        try:
            await wait_until(is_at_rest, 10)
        except TimeoutError:
            pytest.fail(str(left_over()))
        answers = await asyncio.gather(*(room.get("/get-1") for _ in range(8)))
        assert all(answer.endswith(b"done") or b" 503 " in answer[:20] for answer in answers)
        assert sum(answer.endswith(b"done") for answer in answers) >= 4
        await wait_until(is_at_rest)


@pytest.mark.parametrize("seed", range(6))
async def test_nobody_waits_for_ever_at_a_replica_that_is_free(seed: int) -> None:
    rng = random.Random(seed)

    async def short() -> None:
        await asyncio.sleep(rng.random() * 0.002)

    async with Room() as room:
        room.route(room.replica(methods={"slow": short}, limit=2))

        async def ask() -> None:
            for _ in range(40):
                await room.caller.submit_call("app_Echo", "slow", dumps(((), {})), NO_REQUEST)
                await asyncio.sleep(rng.random() * 0.004)

        async with asyncio.timeout(10):
            await asyncio.gather(*(ask() for _ in range(4)))


@pytest.mark.parametrize("seed", range(3))
async def test_the_cap_is_exact_over_all_callers(seed: int) -> None:
    rng = random.Random(seed)
    running = most = 0

    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(rng.random() * 0.003)
        finally:
            running -= 1

    async with Room() as room:
        address = room.replica(methods={"slow": count}, limit=3)
        room.route(address)
        callers = [room.caller, *(a_caller() for _ in range(3))]
        for other in callers[1:]:
            other.apply_routing(routing_for(targets_for(address)))
        tickets = []
        for number in range(200):
            caller = rng.choice(callers)
            ticket = caller.submit_call("app_Echo", "slow", dumps(((), {})), NO_REQUEST)
            tickets.append(ticket)
            if number % 7 == 0:
                rng.choice(tickets).cancel()
            if number % 20 == 0:
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            left = await asyncio.gather(*tickets, return_exceptions=True)
        assert most == 3
        assert sum(isinstance(answer, list) for answer in left) > 80
        await wait_until(lambda: not room.servers[address].ongoing and not running)
        for other in callers[1:]:
            assert await other.submit_call("app_Echo", "slow", dumps(((), {})), NO_REQUEST)
            other.close()


@given(st.binary(max_size=100))
@UNHURRIED
def test_bytes_that_are_no_envelope(data: bytes) -> None:
    for read in (unpack, read_origin):
        try:
            read(data)
        except ProtocolError:
            pass


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63), st.binary(max_size=20), st.text(max_size=5)), max_size=4))
@UNHURRIED
def test_envelopes_survive(records: list[Any]) -> None:
    assert list(unpack(msgpack.packb([0, *records]))) == [0, *records]


@pytest.mark.parametrize("seed", range(3))
async def test_peers_that_send_nonsense_are_dropped_alone(seed: int) -> None:
    rng = random.Random(seed)
    good: dict[int, list[Any]] = {
        HTTP: [HTTP, 1, 0, "GET", b"/", b"", [[b"host", b"x"]], b"", "id", "/", b"", None],
        CALL: [CALL, 1, 0, "slow", [b"x"], ["id", "/", "app", "", None, 0, []]],
    }
    async with Room() as room:
        address = room.replica(work, {"slow": slow})
        room.route(address)
        assert (await room.get("/get")).endswith(b"done")
        server = room.servers[address]
        context = zmq.Context()
        try:
            for number in range(60):
                with context.socket(zmq.DEALER) as socket:
                    socket.setsockopt(zmq.LINGER, 1000)
                    socket.connect(address)
                    record = list(good[rng.choice([HTTP, CALL])])
                    for _ in range(rng.choice([1, 1, 3])):
                        record[rng.randrange(1, len(record))] = rng.choice(ODD_VALUES)
                    odd = [rng.choice([0, 0, 0, 1]), record, [rng.randrange(20), *rng.sample(ODD_VALUES, 3)]]
                    frames = [rng.randbytes(5)] * rng.choice([0, 0, 0, 1, 3])
                    socket.send_multipart([rng.choice([msgpack.packb(odd), rng.randbytes(30)]), *frames])
                if number % 10 == 0:
                    assert (await room.get("/get")).endswith(b"done")
        finally:
            context.term()
        await wait_until(lambda: server.admission.running == server.admission.held == 0)
        await wait_until(lambda: len(server._link.peers) == 1)  # type: ignore[union-attr]
        assert (await room.get("/get")).endswith(b"done")
