"""Clients of gRPC that lie, leave, send too much or too many: the right code, bounded memory, other calls unharmed."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio: pip install 'servd-serve[grpc]'")

from servd.proxy.grpc.lane import GrpcLane  # noqa: E402
from servd.wire.connection_room import ROOM_BYTES  # noqa: E402
from servd.wire.grpc.messages import GrpcMethod, GrpcRoute  # noqa: E402
from servd.wire.records import CREDIT_BYTES  # noqa: E402
from tests.fakes import wait_until  # noqa: E402
from tests.rooms.http2_client import PREFACE, Http2Client, frame  # noqa: E402
from tests.rooms.test_grpc_lane import BIG, DEPLOYMENT, GrpcRoom, outcome, without_end  # noqa: E402

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
HEADERS = {"content_type": "application/grpc", "te": "trailers"}


@pytest.fixture
async def room() -> AsyncIterator[GrpcRoom]:
    """A room with one replica."""
    async with GrpcRoom() as made:
        made.announce(await made.stand(limit=2000))
        yield made


def ongoing(room: GrpcRoom) -> int:
    """Calls that the proxy or the replica has."""
    return room.grpc.ongoing + sum(server.ongoing for server in room.servers.values())


async def serves(room: GrpcRoom) -> None:
    """Fail unless calls are answered, and nothing of those before is left."""
    assert await room.method("Echo")("x", timeout=5) == "x"
    await wait_until(lambda: ongoing(room) == 0)


def a_message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """As it goes over the wire: flag of compression, length, bytes."""
    return bytes([flag]) + (len(data) if length is None else length).to_bytes(4, "big") + data


@pytest.mark.parametrize("method", ["Echo", "Join"])
@pytest.mark.parametrize(
    "body",
    [
        a_message(b"x", length=100),
        a_message(b"x")[:3],
        b"",
        a_message(b"x", flag=1),
        a_message(b"x", flag=7),
        a_message(b"x") + a_message(b"y", length=2**32 - 1),
        random.Random(19).randbytes(2000),
    ],
    ids=["cut short", "half a head", "nothing", "packed as nothing", "no such flag", "too long", "noise"],
)
async def test_broken_messages_end_their_call_alone(room: GrpcRoom, method: str, body: bytes) -> None:
    async with Http2Client(room.grpc_port) as good, Http2Client(room.grpc_port) as bad:
        waiting = good.ask("/s.Stand/Wait", "POST", end=False, **HEADERS)
        await good.send(waiting, a_message(b"still here"))
        await wait_until(lambda: ongoing(room) == 2)
        stream = bad.ask(f"/s.Stand/{method}", "POST", end=False, **HEADERS)
        await bad.send(stream, body)
        # the library waits for the client to leave where there is no whole message for a method that takes one
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2 if method == "Echo" else 10):
                await bad.answer(stream)
        bad.abort()
        room.stands[0].gate.set()
        assert await good.answer(waiting) == (200, a_message(b"still here"))
    await serves(room)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        PREFACE + random.Random(20).randbytes(4000),
        PREFACE + frame(4, 0, 0) + frame(1, 5, 1, b"\xff" * 50),
        PREFACE + frame(4, 0, 0) + frame(0, 0, 1, b"x" * 16000),
        PREFACE + frame(4, 0, 0) + frame(8, 0, 0, bytes(4)),
        b"\x16\x03\x01\x02\x00" + bytes(512),
    ],
    ids=["HTTP/1", "noise", "bad header block", "data of nobody", "window of nothing", "TLS"],
)
async def test_a_connection_that_does_not_speak_grpc_is_the_end_of_itself(room: GrpcRoom, bytes_sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", room.grpc_port)
    writer.write(bytes_sent)
    await asyncio.sleep(0)
    writer.write_eof()
    async with asyncio.timeout(10):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
    writer.close()
    await serves(room)


async def test_what_is_no_call_of_grpc_is_told_so(room: GrpcRoom) -> None:
    async with Http2Client(room.grpc_port) as client:
        for method, headers in (("GET", HEADERS), ("POST", {"content_type": "text/plain", "te": "trailers"})):
            stream = client.ask("/s.Stand/Echo", method, end=False, **headers)
            await client.send(stream, a_message(b"x"))
            await client.answer(stream)
            assert client.headers.get(stream, {}).get("grpc-status") != "0"
    await serves(room)


@pytest.mark.parametrize("name", ["Echo", "Repeat", "Join", "Talk"])
async def test_a_method_called_as_another_kind_harms_nobody(room: GrpcRoom, name: str) -> None:
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        call = getattr(room.channel, kind)(f"/s.Stand/{name}", str.encode, bytes.decode)
        code, *_ = await outcome(call("1" if kind.startswith("unary") else iter(["1"]), timeout=5))
        assert code in ("OK", "UNIMPLEMENTED", "INTERNAL", "CANCELLED")
    await serves(room)


async def test_messages_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVD_GRPC_MAX_MESSAGE_BYTES", "1000")
    async with GrpcRoom() as room:
        room.announce(await room.stand())
        assert await room.method("Echo")("x" * 1000) == "x" * 1000
        for name, request in (("Echo", "x" * 1001), ("Join", without_end("x", "y" * 1001))):
            code, details, _ = await outcome(room.method(name)(request))
            assert (code, "1001 vs. 1000" in details) == ("RESOURCE_EXHAUSTED", True)
        # one of the answer is too large as well
        assert (await outcome(room.method("Flood")("1")))[0] == "RESOURCE_EXHAUSTED"
        assert (await outcome(room.method("Join")(iter(["x" * 600] * 2))))[0] == "RESOURCE_EXHAUSTED"
        await serves(room)


async def test_more_metadata_than_a_call_may_have_are_refused(room: GrpcRoom) -> None:
    many = tuple((f"x-{number}", "y") for number in range(70))
    assert await room.method("Echo")("x", metadata=many[:60]) == "x"
    code, details, _ = await outcome(room.method("Echo")("x", metadata=many))
    assert (code, "may have 64 metadata" in details) == ("RESOURCE_EXHAUSTED", True)


async def test_which_application_is_meant_must_be_said_where_there_are_several(room: GrpcRoom) -> None:
    echo = (GrpcMethod("/s.Stand/Echo"),)
    room.grpc.apply_routing((GrpcRoute("a", DEPLOYMENT, echo), GrpcRoute("b", DEPLOYMENT, echo)))
    for metadata, code in (
        ((), "NOT_FOUND"),
        ((("application", ""),), "NOT_FOUND"),
        ((("application", "c"),), "NOT_FOUND"),
        ((("application-bin", b"a"),), "NOT_FOUND"),
        ((("application", "b"),), "OK"),
    ):
        assert (await outcome(room.method("Echo")("x", metadata=metadata)))[0] == code


@pytest.mark.parametrize("limit", ["nan", "-1", "inf", "soon", "1e400", ""])
async def test_a_time_limit_that_is_none_is_none(room: GrpcRoom, limit: str) -> None:
    assert await room.method("Echo")("x", metadata=(("x-request-timeout-seconds", limit),)) == "x"


async def test_clients_that_vanish_take_their_calls_along(room: GrpcRoom) -> None:
    async with Http2Client(room.grpc_port) as client:
        for name in ("Wait", "Swallow", "Talk", "Flood", "CountSync"):
            stream = client.ask(f"/s.Stand/{name}", "POST", end=False, **HEADERS)
            await client.send(stream, a_message(b"1000000"), end=name in ("Wait", "Flood"))
        await wait_until(lambda: ongoing(room) == 10)
    await serves(room)
    assert room.stands[0].whole == 0


@pytest.mark.long
async def test_a_thousand_open_streams(room: GrpcRoom) -> None:
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{room.grpc_port}", OWN_CONNECTION) for _ in range(10)]
    calls = [channels[number % 10].stream_stream("/s.Stand/Talk", str.encode, bytes.decode)() for number in range(1000)]
    await asyncio.gather(*(call.write("a") for call in calls))
    assert set(await asyncio.gather(*(call.read() for call in calls))) == {"A"}
    assert await room.method("Echo")("x", timeout=5) == "x"
    assert room.grpc.ongoing == 1000
    for call in calls[::2]:
        call.cancel()
    await wait_until(lambda: ongoing(room) == 1000)
    await asyncio.gather(*(call.write("b") for call in calls[1::2]))
    assert set(await asyncio.gather(*(call.read() for call in calls[1::2]))) == {"B"}
    await asyncio.gather(*(call.done_writing() for call in calls[1::2]))
    assert {await call.code() for call in calls[1::2]} == {grpc.StatusCode.OK}
    await serves(room)
    await asyncio.gather(*(channel.close() for channel in channels))


async def test_calls_beyond_what_a_connection_may_have_wait_in_their_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVD_GRPC_MAX_CONCURRENT_STREAMS", "4")
    async with GrpcRoom() as room:
        room.announce(await room.stand())
        most = 0

        async def ask() -> None:
            nonlocal most
            for _ in range(5):
                assert await room.method("Echo")("x", timeout=20) == "x"
                most = max(most, room.grpc.ongoing)

        waiting = [asyncio.ensure_future(room.method("Wait")("x", timeout=20)) for _ in range(12)]
        await wait_until(lambda: ongoing(room) == 8)
        room.stands[0].gate.set()
        assert set(await asyncio.gather(*waiting)) == {"x"}
        await asyncio.gather(*(ask() for _ in range(20)))
        # one whose answer has left may still be on its way out
        assert most <= 8
        await serves(room)


@pytest.mark.parametrize("size", [1000, 300_000, 3 * CREDIT_BYTES])
async def test_what_nobody_takes_is_bounded_whatever_its_size(room: GrpcRoom, size: int) -> None:
    """Credit and one message in each direction: what the replica has in hand of requests, and the proxy of an answer."""
    text = "x" * size
    call, count = room.method("Swallow")(), 4 * CREDIT_BYTES // size + 10
    sent = 0

    async def write() -> None:
        nonlocal sent
        for _ in range(count):
            await call.write(text)
            sent += 1

    task = asyncio.create_task(write())
    server = next(iter(room.servers.values()))
    await wait_until(lambda: server.ongoing == 1)
    (peer,) = server._link.peers.values()  # type: ignore[union-attr]
    (exchange,) = peer.open.values()  # type: ignore[attr-defined]
    (pending,) = room.caller.router_of(DEPLOYMENT).candidates[0].peer.pending.values()
    await wait_until(lambda: pending._credit <= 0 and len(exchange._messages) > 0, timeout_s=20)
    held = sum(map(len, exchange._messages))
    assert 0 < held <= CREDIT_BYTES + size
    assert not task.done()
    call.cancel()
    task.cancel()
    await serves(room)


async def test_answers_of_one_connection_that_nobody_reads_share_a_room(room: GrpcRoom) -> None:
    count = 40
    async with Http2Client(room.grpc_port) as client:
        for _ in range(count):
            stream = client.ask("/s.Stand/Flood", "POST", end=False, **HEADERS)
            await client.send(stream, a_message(b"1000000"), end=True)
        server = next(iter(room.servers.values()))
        await wait_until(lambda: server.ongoing == count)
        (peer,) = server._link.peers.values()  # type: ignore[union-attr]
        exchanges = peer.open.values()
        await wait_until(lambda: all(exchange._credit <= 0 for exchange in exchanges), timeout_s=20)  # type: ignore[attr-defined]
        # a few of each are in hands on the way; each would have eleven more if the room were its own
        assert room.stands[0].given * len(BIG) <= ROOM_BYTES + 5 * count * len(BIG)
    await serves(room)
    assert not room.grpc._rooms


async def test_a_lane_refuses_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, room: GrpcRoom) -> None:
    for limit in ("0", "-1", "2147483648", "much"):
        monkeypatch.setenv("SERVD_GRPC_MAX_MESSAGE_BYTES", limit)
        lane: Any = GrpcLane(room.forwarder)
        with pytest.raises(ValueError, match=r"SERVD_GRPC_MAX_MESSAGE_BYTES|much"):
            await lane.open("127.0.0.1", 0)
    monkeypatch.delenv("SERVD_GRPC_MAX_MESSAGE_BYTES")
    for name in ("SERVD_GRPC_MAX_CONCURRENT_STREAMS", "SERVD_GRPC_STREAM_WINDOW_BYTES"):
        monkeypatch.setenv(name, "0")
        with pytest.raises(ValueError, match=name):
            await GrpcLane(room.forwarder).open("127.0.0.1", 0)
        monkeypatch.delenv(name)
