"""Clients of gRPC that ask the connection of a call in which nothing is said for signs of life."""

import asyncio

import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio: pip install 'servd-serve[grpc]'")

from tests.fakes import wait_until  # noqa: E402
from tests.rooms.http2_client import Http2Client, frame  # noqa: E402
from tests.rooms.test_grpc_lane import GrpcRoom  # noqa: E402

PING = 6
OFTEN, LEAST_S = 8, 0.05


@pytest.mark.parametrize("is_decent", [True, False], ids=["as often as one may", "all at once"])
async def test_who_asks_for_signs_of_life_keeps_its_call(is_decent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # gRPC lets its clients ask every ten seconds, and its servers by themselves send those away that do
    monkeypatch.setattr("servd.proxy.grpc.lane._PING_S", LEAST_S)
    async with GrpcRoom() as room:
        room.announce(await room.stand())
        async with Http2Client(room.grpc_port) as client:
            client.ask("/s.Stand/Talk", "POST", end=False, content_type="application/grpc", te="trailers")
            await wait_until(lambda: room.grpc.ongoing == 1)
            pings = [frame(PING, 0, 0, number.to_bytes(8, "big")) for number in range(OFTEN)]
            if not is_decent:
                client.flush(b"".join(pings))
                await wait_until(lambda: client.is_over and not room.grpc.ongoing)
                return
            loop = asyncio.get_running_loop()
            for ping in pings:
                client.flush(ping)
                due = loop.time() + 2 * LEAST_S
                await wait_until(lambda due=due: loop.time() >= due)  # type: ignore[misc]
            assert (client.is_over, room.grpc.ongoing) == (False, 1)
