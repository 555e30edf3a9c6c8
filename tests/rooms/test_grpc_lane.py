"""gRPC through a proxy's lane and a replica, over real channels; messages are text here, whatever makes their bytes."""

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import h2.events
import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio: pip install 'servd-serve[grpc]'")

from servd.api import deployment  # noqa: E402
from servd.app.grpc_servicers import Codec  # noqa: E402
from servd.calls import failures  # noqa: E402
from servd.calls.failures import listen  # noqa: E402
from servd.calls.grpc_services import Health, health_answer  # noqa: E402
from servd.calls.replica_context import ReplicaContext  # noqa: E402
from servd.calls.request_context import current_request, get_multiplexed_model_id  # noqa: E402
from servd.exceptions import BackPressureError, DeploymentUnavailableError, gRPCStatusError  # noqa: E402
from servd.grpc_util import RayServegRPCContext, gRPCInputStream  # noqa: E402
from servd.observability.journal import NOTE_PARTS, Journal  # noqa: E402
from servd.proxy.grpc.certificate import GrpcCertificate  # noqa: E402
from servd.proxy.grpc.lane import GrpcLane  # noqa: E402
from servd.proxy.grpc.served import client_host  # noqa: E402
from servd.replica.grpc.service import GrpcService  # noqa: E402
from servd.replica.server import ReplicaServer  # noqa: E402
from servd.replica.user_callable import UserCallable  # noqa: E402
from servd.wire.grpc.messages import GrpcMethod, GrpcRoute  # noqa: E402
from servd.wire.grpc.protobuf import bytes_field, fields  # noqa: E402
from servd.wire.messages import Routing  # noqa: E402
from servd.wire.records import CREDIT_BYTES  # noqa: E402
from tests.fakes import Room, make_certificate, new_address, targets_for, wait_until  # noqa: E402
from tests.rooms.http2_client import Http2Client  # noqa: E402

DEPLOYMENT = "app_Stand"
BIG = "x" * 100_000


class Stand:
    """What a deployment may do."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.sent = self.given = 0
        self.got: list[str] = []
        self.ended = ""
        self.whole = 0

    async def Echo(self, text: str) -> str:
        return text

    async def Count(self, texts: gRPCInputStream) -> str:
        number = len([text async for text in texts])
        self.whole += 1
        return str(number)

    async def Chat(self, texts: gRPCInputStream) -> AsyncIterator[str]:
        async for text in texts:
            yield text
        self.whole += 1

    def CountSync(self, texts: gRPCInputStream) -> str:
        try:
            number = len(list(texts))
        finally:
            self.ended = f"cancelled: {texts.is_cancelled()}, exhausted: {texts.is_exhausted}"
        self.whole += 1
        return str(number)

    async def FirstOf(self, texts: gRPCInputStream) -> str:
        async for text in texts:
            texts.cancel()
            self.got.append(text)
        return f"{self.got} {texts.is_cancelled()} {texts.is_exhausted}"

    async def Who(self, text: str, grpc_context: RayServegRPCContext) -> str:
        about = grpc_context.auth_context()
        return f"{grpc_context.peer_identity_key()} {grpc_context.peer_identities()} {about['transport_security_type']}"

    async def Packed(self, text: str, grpc_context: RayServegRPCContext) -> str:
        grpc_context.set_compression(grpc.Compression.Gzip)
        return text

    async def PackedMany(self, text: str, grpc_context: RayServegRPCContext) -> AsyncIterator[str]:
        grpc_context.set_compression(grpc.Compression.Deflate)
        yield text
        yield text

    def Sync(self, text: str, grpc_context: RayServegRPCContext) -> str:
        said = dict(grpc_context.invocation_metadata())
        grpc_context.set_trailing_metadata([("x-kind", "sync"), ("x-raw-bin", b"\0\xff")])
        about = [said["x-who"], get_multiplexed_model_id(), current_request.get().request_id, grpc_context.peer()[:4]]
        return "|".join([text, *about, str((grpc_context.time_remaining() or 0) > 0)])

    async def Repeat(self, text: str) -> AsyncIterator[str]:
        for number in range(int(text)):
            yield str(number)

    def RepeatSync(self, text: str) -> Iterator[str]:
        for number in range(int(text)):
            yield str(number)

    async def Join(self, texts: gRPCInputStream) -> str:
        return ",".join([text async for text in texts])

    def JoinSync(self, texts: gRPCInputStream) -> str:
        return ",".join(texts)

    def TalkSync(self, texts: gRPCInputStream) -> Iterator[str]:
        yield from texts

    async def Stubborn(self, texts: gRPCInputStream) -> str:
        while True:
            try:
                return ",".join([text async for text in texts])
            except asyncio.CancelledError:
                self.ended = "goes on"

    async def Talk(self, texts: gRPCInputStream) -> AsyncIterator[str]:
        async for text in texts:
            yield text.upper()

    async def Fail(self, text: str, grpc_context: RayServegRPCContext) -> str:
        if text == "set":
            grpc_context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
            grpc_context.set_details("not yet")
        elif text == "set, long":
            grpc_context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
            grpc_context.set_details("\u00e9" * 500_000)
        elif text == "status, long":
            raise gRPCStatusError(KeyError("x"), grpc.StatusCode.OUT_OF_RANGE, "x" * 500_000)
        elif text == "good":
            grpc_context.set_details("as ever")
        elif text == "set and raise":
            grpc_context.set_code(grpc.StatusCode.ABORTED)
            raise RuntimeError("lost the race")
        elif text == "status":
            raise gRPCStatusError(KeyError("x"), grpc.StatusCode.OUT_OF_RANGE, "past the end")
        elif text == "raise":
            raise RuntimeError("a secret")
        elif text == "away":
            raise DeploymentUnavailableError("app_Model", "it does not start")
        elif text == "set, no UTF-8":
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            raise FileNotFoundError("caf\udce9")
        elif text == "no status":
            raise gRPCStatusError(KeyError("x"), "NOT_FOUND")
        elif text == "no text":
            raise gRPCStatusError(KeyError("x"), 5, KeyError("x"))  # type: ignore[arg-type]
        elif text == "busy":
            raise BackPressureError("app_Model", 3, 3, 429, 7.5)
        elif text == "wrong":
            return 7  # type: ignore[return-value]
        return text

    async def Wait(self, text: str) -> str:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        return text

    async def Flood(self, text: str) -> AsyncIterator[str]:
        try:
            for self.sent in range(1, int(text) + 1):
                self.given += 1
                yield BIG
        finally:
            self.ended = "over"

    async def Swallow(self, texts: gRPCInputStream) -> str:
        await self.gate.wait()
        async for text in texts:
            self.got.append(text)
        return str(len(self.got))


def codec(name: str, *, streams_in: bool = False, streams_out: bool = False) -> Codec:
    return Codec(f"/s.Stand/{name}", streams_in, streams_out, bytes.decode, str.encode)


CODECS = {
    each.name: each
    for each in (
        *(codec(name) for name in ("Echo", "Sync", "Fail", "Wait", "Missing", "Who", "Packed")),
        *(codec(name, streams_out=True) for name in ("Repeat", "RepeatSync", "Flood", "PackedMany")),
        *(
            codec(name, streams_in=True)
            for name in ("Join", "JoinSync", "Stubborn", "Swallow", "Count", "CountSync", "FirstOf")
        ),
        *(codec(name, streams_in=True, streams_out=True) for name in ("Talk", "TalkSync", "Chat")),
    )
}
IDEMPOTENT = "/s.Stand/Echo"


class GrpcRoom(Room):
    """A room whose replicas serve gRPC on a port of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.grpc = GrpcLane(self.forwarder)
        self.stands: list[Stand] = []
        self.grpc_port = 0

    async def __aenter__(self) -> "GrpcRoom":
        await super().__aenter__()
        self.grpc_port = await self.grpc.open("127.0.0.1", 0)
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.grpc_port}", [("grpc.max_receive_message_length", -1)]
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        for stand in self.stands:
            stand.gate.set()
        await self.channel.close()
        await self.grpc.close(1.0)
        await super().__aexit__(*exc)

    async def stand(self, *, limit: int = 100) -> str:
        """One more replica; gives its address."""
        loop, address = asyncio.get_running_loop(), new_address()
        user = UserCallable(deployment(Stand), ReplicaContext(DEPLOYMENT, address), max_sync_threads=4)
        await user.construct()
        self.stands.append(user._instance)
        service = GrpcService(loop, user, dict(CODECS), "app")
        server = ReplicaServer(loop, address, user, limit=limit, grpc=service)
        server.start()
        self.servers[address] = server
        return address

    def announce(self, *addresses: str, limit_s: float | None = None, **options: Any) -> None:
        """Make these replicas the ingress of the only application."""
        self._generation += 1
        known = tuple(
            GrpcMethod(each.name, each.streams_in, each.streams_out, each.name == IDEMPOTENT)
            for each in (*CODECS.values(), codec("Later"))
        )
        targets = targets_for(*addresses, deployment=DEPLOYMENT, **options)
        routes = (GrpcRoute("app", DEPLOYMENT, known, limit_s),)
        self.grpc.apply_routing(routes)
        self.forwarder.apply_routing(Routing(self._generation, targets=(targets,), grpc=routes))

    def method(self, name: str) -> Any:
        """What calls a method."""
        each = CODECS.get(f"/s.Stand/{name}") or codec(name)
        kind = f"{'stream' if each.streams_in else 'unary'}_{'stream' if each.streams_out else 'unary'}"
        return getattr(self.channel, kind)(f"/s.Stand/{name}", str.encode, bytes.decode)


@pytest.fixture
async def room() -> AsyncIterator[GrpcRoom]:
    """A room with one replica."""
    async with GrpcRoom() as made:
        made.announce(await made.stand())
        yield made


async def outcome(call: Any) -> tuple[str, str, dict[str, Any]]:
    """Name of the status, details, trailing metadata."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError:
        pass
    return (await call.code()).name, await call.details(), dict(await call.trailing_metadata())


async def without_end(*messages: Any) -> AsyncIterator[Any]:
    """They, and nothing more. The library's client gives INTERNAL for what it sends when its call has ended already."""
    for message in messages:
        yield message
    await asyncio.Event().wait()


async def test_all_four_kinds_of_method(room: GrpcRoom) -> None:
    assert await room.method("Echo")("hello") == "hello"
    assert await room.method("Echo")("") == ""
    for name in ("Repeat", "RepeatSync"):
        assert [text async for text in room.method(name)("3")] == ["0", "1", "2"]
    for name in ("Join", "JoinSync"):
        assert await room.method(name)(iter(["a", "", "b"])) == "a,,b"
        assert await room.method(name)(iter([])) == ""
    talk = room.method("Talk")()
    for text in ("a", "b"):
        await talk.write(text)
        assert await talk.read() == text.upper()
    await talk.done_writing()
    assert await talk.read() is grpc.aio.EOF
    assert await talk.code() is grpc.StatusCode.OK


async def test_large_messages_come_whole(room: GrpcRoom) -> None:
    large = "x" * 5_000_000
    assert await room.method("Echo")(large) == large
    assert await room.method("Join")(iter([large, "y"])) == f"{large},y"


async def test_metadata_go_both_ways(room: GrpcRoom) -> None:
    said = (("x-who", "me"), ("request_id", "r-1"), ("multiplexed_model_id", "m7"), ("application", "app"))
    call = room.method("Sync")("hello", metadata=said, timeout=30)
    assert await call == "hello|me|m7|r-1|ipv4|True"
    assert dict(await call.trailing_metadata()) == {"x-kind": "sync", "x-raw-bin": b"\0\xff", "request_id": "r-1"}
    assert await room.method("Who")("") == "None None [b'insecure']"
    made = room.method("Echo")("x")
    await made
    assert len(dict(await made.trailing_metadata())["request_id"]) == 36


@pytest.mark.parametrize(
    ("what", "code", "details"),
    [
        ("set", "FAILED_PRECONDITION", "not yet"),
        ("set, long", "FAILED_PRECONDITION", "\u00e9" * 1024 + " ..."),
        ("status, long", "OUT_OF_RANGE", "x" * 2048 + " ..."),
        ("set and raise", "ABORTED", "lost the race"),
        ("status", "OUT_OF_RANGE", "past the end"),
        ("no status", "INTERNAL", "Internal Server Error (request id r-1)"),
        ("no text", "INTERNAL", "Internal Server Error (request id r-1)"),
        ("set, no UTF-8", "NOT_FOUND", "caf?"),
        ("raise", "INTERNAL", "Internal Server Error (request id r-1)"),
        ("wrong", "INTERNAL", "Internal Server Error (request id r-1)"),
        ("away", "UNAVAILABLE", "app_Model is unavailable: it does not start"),
    ],
)
async def test_how_a_method_ends_is_the_status(room: GrpcRoom, what: str, code: str, details: str) -> None:
    found = await outcome(room.method("Fail")(what, metadata=(("request_id", "r-1"),), timeout=5))
    assert found == (code, details, {"request_id": "r-1"})


class TrailersClient(Http2Client):
    """One that keeps the trailers of its answers: libraries of newer clients give no details of a call that ended well."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.trailers: dict[str, str] = {}

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.TrailersReceived):
            self.trailers = dict(event.headers)  # type: ignore[arg-type]
        super()._take(event)


async def test_details_go_with_a_call_that_ends_well_too(room: GrpcRoom) -> None:
    async with TrailersClient(room.grpc_port) as client:
        stream = client.ask("/s.Stand/Fail", "POST", end=False, content_type="application/grpc", te="trailers")
        await client.send(stream, b"\0\0\0\0\4good")
        assert await client.answer(stream) == (200, b"\0\0\0\0\4good")
        assert (client.trailers["grpc-status"], client.trailers["grpc-message"]) == ("0", "as ever")


async def test_a_refusal_that_a_method_met_says_when_to_come_again(room: GrpcRoom) -> None:
    code, details, trailing = await outcome(room.method("Fail")("busy"))
    assert (code, details) == ("RESOURCE_EXHAUSTED", "app_Model: 3 requests waiting, 3 allowed")
    assert trailing["grpc-retry-pushback-ms"] == "7500"


@pytest.mark.parametrize(
    ("name", "metadata", "code", "words"),
    [
        ("Echo", (("application", "other"),), "NOT_FOUND", "no application 'other'"),
        ("Nothing", (), "UNIMPLEMENTED", ""),
        ("Missing", (), "UNIMPLEMENTED", "no method 'Missing'"),
        ("Later", (), "UNIMPLEMENTED", "this version of the application has no method /s.Stand/Later"),
    ],
)
async def test_what_is_not_there(room: GrpcRoom, name: str, metadata: Any, code: str, words: str) -> None:
    found = await outcome(room.method(name)("x", metadata=metadata))
    assert found[0] == code
    assert words in found[1]


async def test_a_message_that_cannot_be_read_fails_its_call_alone(room: GrpcRoom) -> None:
    for name, request in (("Echo", b"\xff"), ("Join", without_end(b"a", b"\xff"))):
        kind = room.channel.stream_unary if name == "Join" else room.channel.unary_unary
        found = await outcome(kind(f"/s.Stand/{name}")(request))
        assert found[:2] == ("INTERNAL", f"the request is no message of /s.Stand/{name}")
    assert await room.method("Echo")("x") == "x"


async def test_a_replica_without_servicers_says_so_and_serves_on(room: GrpcRoom) -> None:
    address = room.replica()
    room.announce(address)
    found = await outcome(room.method("Echo")("x", timeout=5))
    assert found[:2] == ("UNIMPLEMENTED", "this version of the application has no method /s.Stand/Echo")
    room.route(address)
    assert (await room.get("/x")).endswith(b"GET /x")


@pytest.mark.parametrize(("refusal", "ms"), [((503, None), "1000"), ((429, 2.5), "2500"), ((503, 0), "0")])
async def test_who_finds_the_line_full_is_told_when_to_come_again(refusal: Any, ms: str) -> None:
    async with GrpcRoom() as room:
        room.announce(await room.stand(limit=1), max_queued_requests=0, backpressure=refusal)
        first = room.method("Wait")("a")
        await wait_until(lambda: room.servers[next(iter(room.servers))].ongoing == 1)
        code, _, trailing = await outcome(room.method("Wait")("b"))
        assert (code, trailing["grpc-retry-pushback-ms"]) == ("RESOURCE_EXHAUSTED", ms)
        room.stands[0].gate.set()
        assert await first == "a"


@pytest.mark.parametrize("by", ["route", "metadata", "client", "client, in line"])
async def test_time_limits(by: str) -> None:
    async with GrpcRoom() as room:
        address = await room.stand()
        room.announce(
            *([] if by == "client, in line" else [address]), limit_s=0.05 if by == "route" else None, may_grow=True
        )
        metadata = (("x-request-timeout-seconds", "0.05"),) if by == "metadata" else ()
        call = room.method("Wait")("x", metadata=metadata, timeout=0.05 if "client" in by else None)
        assert (await outcome(call))[0] == "DEADLINE_EXCEEDED"
        await wait_until(lambda: room.grpc.ongoing == 0 and not room.caller.queued())
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_a_client_that_leaves_cancels_its_call(room: GrpcRoom) -> None:
    call = room.method("Wait")("x")
    server = room.servers[next(iter(room.servers))]
    await wait_until(lambda: server.ongoing == 1)
    call.cancel()
    await wait_until(lambda: room.stands[0].ended == "cancelled" and server.ongoing == 0)
    stream = room.method("Flood")("1000000")
    assert await stream.read() == BIG
    stream.cancel()
    await wait_until(lambda: room.stands[0].ended == "over" and server.ongoing == 0)
    assert room.grpc.ongoing == 0


@pytest.mark.parametrize("name", ["JoinSync", "TalkSync", "Stubborn"])
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_method_that_waits_for_a_message_ends_when_its_client_does(
    room: GrpcRoom, name: str, is_late: bool
) -> None:
    server = room.servers[next(iter(room.servers))]
    # as many as there are threads
    limit = (("x-request-timeout-seconds", "0.2"),) if is_late else ()
    calls = [room.method(name)(metadata=limit) for _ in range(4)]
    for call in calls:
        await call.write("x")
    await wait_until(lambda: server.ongoing == 4 or is_late)
    for call in calls if not is_late else ():
        call.cancel()
    await wait_until(lambda: server.ongoing == 0 and room.grpc.ongoing == 0)
    assert await room.method("RepeatSync")("1").read() == "0"


@pytest.mark.parametrize("name", ["Count", "Chat"])
async def test_requests_of_a_client_that_has_left_are_no_whole_stream(room: GrpcRoom, name: str) -> None:
    stand, server = room.stands[0], room.servers[next(iter(room.servers))]
    for _ in range(20):
        call = room.method(name)()
        await call.write("x")
        if name == "Chat":
            assert await call.read() == "x"
        await wait_until(lambda: server.ongoing == 1)
        call.cancel()
        await wait_until(lambda: server.ongoing == 0)
    assert stand.whole == 0
    call = room.method(name)(iter("ab"))
    assert [text async for text in call] == ["a", "b"] if name == "Chat" else await call == "2"
    assert stand.whole == 1


async def test_that_a_client_leaves_is_no_error_of_a_sync_method(room: GrpcRoom) -> None:
    told: list[BaseException] = []
    listen(lambda error, *_: told.append(error))
    stand, server = room.stands[0], room.servers[next(iter(room.servers))]
    try:
        for patient in (True, False):
            server.cancel_on_disconnect = patient
            stand.ended = ""
            call = room.method("CountSync")()
            await call.write("x")
            await wait_until(lambda: server.ongoing == 1)
            call.cancel()
            await wait_until(lambda: server.ongoing == 0)
            assert stand.ended == "cancelled: True, exhausted: False"
        assert await room.method("CountSync")(iter("ab")) == "2"
        assert stand.ended == "cancelled: False, exhausted: True"
        assert (told, stand.whole) == ([], 1)
        await outcome(room.method("Fail")("raise"))
        assert [type(error) for error in told] == [RuntimeError]
    finally:
        failures._listeners.clear()


async def test_a_method_may_end_the_requests(room: GrpcRoom) -> None:
    assert await room.method("FirstOf")(without_end("a")) == "['a'] True True"


async def test_answers_are_compressed_where_a_method_says_so(room: GrpcRoom) -> None:
    assert await room.method("Packed")(BIG) == BIG
    assert [text async for text in room.method("PackedMany")(BIG)] == [BIG, BIG]
    assert await encoding(room.grpc_port, "Echo") is None
    assert await encoding(room.grpc_port, "Packed") == "gzip"
    assert await encoding(room.grpc_port, "PackedMany") == "deflate"


async def encoding(port: int, name: str) -> str | None:
    """How the answers of a method are compressed for a client that takes everything."""
    async with Http2Client(port) as client:
        headers = {"content_type": "application/grpc", "te": "trailers", "grpc_accept_encoding": "gzip, deflate"}
        stream = client.ask(f"/s.Stand/{name}", "POST", end=False, **headers)
        await client.send(stream, b"\0" + len(BIG).to_bytes(4, "big") + BIG.encode())
        return (await client.head(stream)).get("grpc-encoding")


async def test_a_slow_reader_holds_the_method_up(room: GrpcRoom) -> None:
    stream = room.method("Flood")("200")
    assert await stream.read() == BIG
    exchange = await the_exchange(room)
    await wait_until(lambda: exchange._writer is not None and not exchange._writer.done())
    assert room.stands[0].sent * len(BIG) < 3 * CREDIT_BYTES
    for _ in range(199):
        assert await stream.read() == BIG
    assert await stream.read() is grpc.aio.EOF


async def test_calls_of_one_answer_take_no_room_from_streams_beside_them(room: GrpcRoom) -> None:
    waiting = [room.method("Wait")("x") for _ in range(30)]
    await wait_until(lambda: room.grpc.ongoing == 30)
    # more than both ends and the system between them take of what nobody reads
    stream = room.method("Flood")("200")
    assert await stream.read() == BIG
    assert [found.shares for found in room.grpc._rooms.values()] == [1]
    room.stands[0].gate.set()
    assert await asyncio.gather(*waiting) == ["x"] * 30
    assert [await stream.read() for _ in range(200)] == [BIG] * 199 + [grpc.aio.EOF]
    await wait_until(lambda: not room.grpc._rooms)


async def test_a_method_that_does_not_read_holds_the_client_up(room: GrpcRoom) -> None:
    call = room.method("Swallow")()
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(200):
            await call.write(BIG)
            written += 1
        await call.done_writing()

    task = asyncio.create_task(write())
    exchange = await the_exchange(room)
    await wait_until(lambda: len(exchange._messages) * len(BIG) >= CREDIT_BYTES)
    (pending,) = room.caller.router_of(DEPLOYMENT).candidates[0].peer.pending.values()
    await wait_until(lambda: pending._room is not None and not pending._room.done())
    assert len(exchange._messages) * len(BIG) < 2 * CREDIT_BYTES
    assert written < 100
    room.stands[0].gate.set()
    await task
    assert await call == "200"


async def the_exchange(room: GrpcRoom) -> Any:
    """The only call that the only replica serves."""
    server = next(iter(room.servers.values()))
    await wait_until(lambda: server.ongoing == 1)
    assert server._link is not None
    (peer,) = server._link.peers.values()
    (exchange,) = peer.open.values()  # type: ignore[attr-defined]
    return exchange


async def test_what_a_dead_replica_had_is_sent_again_where_it_may_be() -> None:
    async with GrpcRoom() as room:
        first = await room.stand()
        room.announce(first)
        assert await room.method("Echo")("x") == "x"
        waiting = room.method("Wait")("x")
        await wait_until(lambda: room.servers[first].ongoing == 1)
        room.servers.pop(first).close()
        assert (await outcome(waiting))[0] == "UNAVAILABLE"
        again = room.method("Echo")("y")
        await wait_until(lambda: room.grpc.ongoing == 1)
        room.announce(await room.stand())
        assert await again == "y"


async def test_calls_under_way_end_before_the_lane_does(room: GrpcRoom) -> None:
    waiting = room.method("Wait")("x")
    await wait_until(lambda: room.servers[next(iter(room.servers))].ongoing == 1)
    closing = asyncio.create_task(room.grpc.close(5.0))
    await asyncio.sleep(0)
    room.stands[0].gate.set()
    assert await waiting == "x"
    await closing


async def test_a_lane_that_others_replace_is_healthy_until_its_clients_were_told_to_go(
    room: GrpcRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVD_GRPC_MAX_CONNECTION_AGE_S", "0.4")
    monkeypatch.setattr("servd.proxy.grpc.lane.others_listen", lambda *_: True)
    lane = GrpcLane(room.forwarder)
    lane.apply_routing((GrpcRoute("app", DEPLOYMENT, (GrpcMethod(IDEMPOTENT),)),))
    port = await lane.open("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watch.read() == health_answer(Health.SERVING)
        closing = asyncio.create_task(lane.close(10.0, is_replaced=True))
        await asyncio.sleep(0)
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == health_answer(Health.SERVING)
        assert await channel.unary_unary(IDEMPOTENT)(b"x") == b"x"
        # nor do those who watch it hold up its end
        await asyncio.wait_for(closing, 5.0)
        assert await watch.read() == health_answer(Health.NOT_SERVING)
        assert await watch.read() is grpc.aio.EOF


async def test_a_lane_ends_though_it_cannot_look_for_its_clients(
    room: GrpcRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("servd.proxy.grpc.sockets.os.listdir", fails)
    await room.grpc.close(1.0, is_replaced=True)
    assert (await outcome(room.method("Echo")("x", timeout=5.0)))[0] == "UNAVAILABLE"


async def test_a_call_is_noted_with_all_that_is_known_of_it(room: GrpcRoom) -> None:
    journal = room.forwarder.journal = Journal(asyncio.get_running_loop(), counts=True)
    await room.method("Echo")("hello", metadata=(("request_id", "r-1"),))
    await outcome(room.method("Fail")("set"))
    await outcome(room.method("Echo")("x", metadata=(("application", "other"),)))
    await wait_until(lambda: len(journal.noted) == 3 * NOTE_PARTS)
    address = next(iter(room.servers))
    assert journal.noted[5:NOTE_PARTS] == [b"r-1", b"/s.Stand/Echo", 5, "127.0.0.1", address]
    assert set(journal.series()) == {
        (("/s.Stand/Echo", "app", DEPLOYMENT, ""), "gRPC", "OK"),
        (("/s.Stand/Fail", "app", DEPLOYMENT, ""), "gRPC", "FAILED_PRECONDITION"),
        (("/s.Stand/Echo", "", "", ""), "gRPC", "NOT_FOUND"),
    }


async def test_health_and_rays_service(room: GrpcRoom) -> None:
    check = room.channel.unary_unary("/grpc.health.v1.Health/Check")
    for service in ("", "s.Stand", "ray.serve.RayServeAPIService"):
        assert await check(bytes_field(1, service)) == health_answer(Health.SERVING)
    assert (await outcome(check(bytes_field(1, "s.Other"))))[0] == "NOT_FOUND"
    assert (await outcome(check(b"\x0a\x05x")))[0] == "INVALID_ARGUMENT"
    api = "/ray.serve.RayServeAPIService"
    assert await room.channel.unary_unary(f"{api}/Healthz")(b"") == bytes_field(1, "success")
    assert await room.channel.unary_unary(f"{api}/ListApplications")(b"") == bytes_field(1, "app")
    watch = room.channel.unary_stream("/grpc.health.v1.Health/Watch")(bytes_field(1, "s.Stand"))
    assert await watch.read() == health_answer(Health.SERVING)
    room.grpc.apply_routing(())
    assert await watch.read() == health_answer(Health.SERVICE_UNKNOWN)
    room.announce(*room.servers)
    assert await watch.read() == health_answer(Health.SERVING)
    # those who watch do not hold up the end
    await room.grpc.close(30.0)
    assert await watch.read() == health_answer(Health.NOT_SERVING)
    assert await watch.read() is grpc.aio.EOF


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_services_and_asks_a_replica_for_the_rest(room: GrpcRoom, version: str) -> None:
    reflect = room.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")()

    async def ask(request: bytes) -> dict[int, Any]:
        await reflect.write(request)
        return dict(fields(await reflect.read()))

    listed = [dict(fields(data))[1] for _, data in fields((await ask(bytes_field(7, "")))[6])]  # type: ignore[arg-type]
    assert {b"s.Stand", b"grpc.health.v1.Health"} < set(listed)
    pool = pytest.importorskip("google.protobuf.descriptor_pool").Default()
    file = pytest.importorskip("google.protobuf.timestamp_pb2").DESCRIPTOR
    for request in (bytes_field(3, file.name), bytes_field(4, "google.protobuf.Timestamp")):
        found = await ask(request)
        assert found == {2: request, 4: bytes_field(1, pool.FindFileByName(file.name).serialized_pb)}
    assert dict(fields((await ask(bytes_field(4, "no.Such")))[7]))[1] == 5
    assert dict(fields((await ask(bytes_field(9, "")))[7]))[1] == 3
    await reflect.done_writing()


async def test_reflection_can_be_switched_off(room: GrpcRoom) -> None:
    room.grpc.apply_routing((GrpcRoute("app", DEPLOYMENT, (), None, reflects=False),))
    reflect = room.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(without_end())
    assert (await outcome(reflect))[0] == "UNIMPLEMENTED"


async def test_tls_follows_the_files_and_asks_clients_for_certificates(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path, "one")
    trusted = chain.read_bytes()
    async with GrpcRoom() as room:
        room.announce(await room.stand())
        for client_ca in ("", str(chain)):
            lane = GrpcLane(room.forwarder)
            methods = (GrpcMethod("/s.Stand/Echo"), GrpcMethod("/s.Stand/Who"))
            lane.apply_routing((GrpcRoute("app", DEPLOYMENT, methods),))
            port = await lane.open("127.0.0.1", 0, GrpcCertificate(str(chain), str(key), client_ca))
            pair = (key.read_bytes(), chain.read_bytes())
            for own in ((), pair):
                credentials = grpc.ssl_channel_credentials(chain.read_bytes(), *own)
                async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                    call = channel.unary_unary("/s.Stand/Echo")(b"x", timeout=5)
                    expected = "OK" if own or not client_ca else "UNAVAILABLE"
                    assert (await outcome(call))[0] == expected
                    if expected == "OK":
                        found = await channel.unary_unary("/s.Stand/Who")(b"x", timeout=5)
                        names = b"x509_subject_alternative_name [b'127.0.0.1', b'localhost']"
                        assert found == (names if client_ca else b"None None") + b" [b'ssl']"
            if not client_ca:
                renewed, new_key = make_certificate(tmp_path, "two")
                renewed.replace(chain), new_key.replace(key)
                assert chain.read_bytes() != trusted
                credentials = grpc.ssl_channel_credentials(chain.read_bytes())
                async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                    assert await channel.unary_unary("/s.Stand/Echo")(b"x", timeout=5) == b"x"
            await lane.close(0)


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:127.0.0.1:5", "127.0.0.1"), ("ipv6:%5B::1%5D:5", "::1"), ("ipv6:[::1]:5", "::1"), ("unix:", "")],
)
def test_the_host_of_a_client(peer: str, host: str) -> None:
    assert client_host(peer) == host
