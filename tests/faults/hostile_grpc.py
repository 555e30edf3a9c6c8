"""Clients of gRPC that take nothing, never end what they send, or open as much as they may: kinds for `tests.faults.hostile`."""

import importlib.util
from collections.abc import Callable
from functools import partial

from tests.faults.hostile_client import Http2Attacker, RawClient, frame

_MANY = 100
_HEADS = [("content-type", "application/grpc"), ("te", "trailers")]

SERVICER = "large.add_LargeServicer_to_server"
APPLICATION = """
import asyncio

import grpc
from servd import deployment

LARGE = b"x" * 16384
KINDS = {
    "Echo": grpc.unary_unary_rpc_method_handler,
    "Deaf": grpc.unary_unary_rpc_method_handler,
    "Whole": grpc.unary_unary_rpc_method_handler,
    "Small": grpc.unary_stream_rpc_method_handler,
    "Mute": grpc.stream_stream_rpc_method_handler,
    "Talk": grpc.stream_stream_rpc_method_handler,
}


def add_LargeServicer_to_server(servicer, server):
    handlers = {name: kind(getattr(servicer, name), bytes, bytes) for name, kind in KINDS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s.Large", handlers),))


@deployment(max_ongoing_requests=100_000)
class Large:
    async def Echo(self, message):
        return message

    async def Deaf(self, message):
        await asyncio.Event().wait()

    async def Whole(self, message):
        return LARGE

    async def Small(self, message):
        for _ in range(100_000):
            yield b"x"

    async def Mute(self, messages):
        await asyncio.Event().wait()
        yield b""

    async def Talk(self, messages):
        async for message in messages:
            yield message


app = Large.bind()
"""


def why_not() -> str:
    """Why these cannot be tried here, "" if they can."""
    return "" if importlib.util.find_spec("grpc") is not None else "needs grpcio: pip install 'servd-serve[grpc]'"


def a_message(data: bytes, *, length: int | None = None) -> bytes:
    """As it goes over the wire; length: what its head says."""
    return b"\0" + (len(data) if length is None else length).to_bytes(4, "big") + data


def is_answered(port: int) -> bool:
    """Whether a call is answered as it should be."""
    import grpc  # where it is, `why_not` knows

    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary("/s.Large/Echo")
        return bool(call(b"x", timeout=20, wait_for_ready=True) == b"x")


def _ask(client: Http2Attacker, method: str, metadata: list[tuple[str, str]] | None = None) -> int:
    return client.ask(f"/s.Large/{method}", "POST", pairs=_HEADS + (metadata or []), end=False)


def _asked(method: str, message: bytes, count: int, is_whole: bool, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    client.upload_each({_ask(client, method): message for _ in range(count)}, end=is_whole)
    return client


def _metadata(count: int, size: int, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    streams = [
        _ask(client, "Deaf", [(f"x-{stream}-{number}", "y" * size) for number in range(count)])
        for stream in range(_MANY)
    ]
    client.upload_each(dict.fromkeys(streams, a_message(b"x")), end=True)
    return client


def _frames(data: bytes, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    stream = _ask(client, "Talk")
    client.push_all(data.replace(b"STRM", stream.to_bytes(4, "big")))
    return client


KINDS: dict[str, Callable[[int], RawClient]] = {
    "grpc: whole answers unread": partial(_asked, "Whole", a_message(b"x"), _MANY, True),
    "grpc: small messages unread": partial(_asked, "Small", a_message(b"x"), _MANY, True),
    "grpc: whole requests": partial(_asked, "Deaf", a_message(b"x" * 8192), _MANY, True),
    "grpc: small requests that nobody takes": partial(_asked, "Mute", a_message(b"x") * 20_000, _MANY, False),
    "grpc: requests that nobody takes": partial(_asked, "Mute", a_message(b"x" * 1000) * 100, _MANY, False),
    "grpc: answers to each unread": partial(_asked, "Talk", a_message(b"x") * 20_000, _MANY, False),
    "grpc: many metadata": partial(_metadata, 150, 1),
    "grpc: large metadata": partial(_metadata, 4, 1900),
    "grpc: messages without end": partial(_asked, "Talk", a_message(b"x" * 1000, length=2**31 - 1), _MANY, False),
    "grpc: broken frames": partial(_frames, (b"\0\x03\xe8\0\0STRM" + b"\xff" * 1000) * 2000),
    "grpc: pings": partial(_frames, frame(6, 0, 0, b"12345678") * 200_000),
    "grpc: settings": partial(_frames, frame(4, 0, 0) * 200_000),
}
"""One connection of each kind: opened, and left alone once it takes nothing more."""
