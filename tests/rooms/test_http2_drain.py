"""How clients of HTTP/2 are sent elsewhere by a proxy that is to go, without a request lost."""

import asyncio

import pytest
from h2.settings import SettingCodes
from hypercorn.events import Event, RawData
from hyperframe.frame import GoAwayFrame

from servd.proxy.hypercorn.http2 import LaneHttp2
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, hello, wait_until
from tests.rooms.http2_client import Http2Client, frame

PING = 6
SLOW_S = 2.0
"""Longer than the proxy waits for a client that is silent."""
NOTICE = GoAwayFrame(0, last_stream_id=2**31 - 1).serialize()


class DecentClient(Http2Client):
    """The library hears nothing after a farewell. This one goes on with what it has asked.

    Attributes:
        is_asked: to send further requests elsewhere.
    """

    is_asked = False

    async def _read(self) -> None:
        read = self.reader.read

        async def without_notice(size: int) -> bytes:
            data = await read(size)
            self.is_asked = self.is_asked or NOTICE in data
            return data.replace(NOTICE, b"") or (await without_notice(size) if data else b"")

        self.reader.read = without_notice  # type: ignore[method-assign]
        await super()._read()


def protocols(room: Room) -> list[LaneHttp2]:
    """Of the connections that are open."""
    found = [connection.protocol.protocol for connection in room.lane._lane.connections]
    return [protocol for protocol in found if isinstance(protocol, LaneHttp2)]


async def test_who_goes_on_is_asked_to_leave_and_loses_nothing() -> None:
    go_on = asyncio.Event()

    async def wait(exchange: HttpExchange) -> None:
        if exchange.scope["path"] == "/wait":
            await go_on.wait()
        await hello(exchange)

    async with Room(hand_over=True) as room:
        room.route(room.replica(wait))
        async with DecentClient(room.port) as client, DecentClient(room.port) as quiet:
            first = client.ask("/wait")
            slow = quiet.ask("/wait")
            assert (await client.get("/"))[0] == 200
            room.lane.drain(0.05)
            assert (await client.get("/"))[0] == 200
            assert not client.is_asked
            await wait_until(lambda: all(protocol.is_unwelcome for protocol in protocols(room)))
            # what is under way alone is waited for
            assert not client.is_asked
            second = client.ask("/wait")
            await wait_until(lambda: client.is_asked)
            assert client.goodbye is None
            go_on.set()
            assert (await client.answer(first))[0] == 200
            assert (await client.answer(second))[0] == 200
            assert (await quiet.answer(slow))[0] == 200
            await wait_until(lambda: client.goodbye == 0)
            assert not quiet.is_asked
            await wait_until(lambda: quiet.goodbye == 0)


async def test_a_request_that_crosses_the_farewell_resets_nothing() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica())
        async with Http2Client(room.port) as client:
            assert (await client.get("/"))[0] == 200
            assert client._reading is not None
            client._reading.cancel()
            (protocol,) = protocols(room)
            heard: list[RawData] = []
            handle = protocol.handle

            async def noting(event: Event) -> None:
                await handle(event)
                if isinstance(event, RawData):
                    heard.append(event)

            protocol.handle = noting  # type: ignore[method-assign]
            room.lane.drain(10.0)
            await wait_until(lambda: protocol._is_over)
            # it has not read the farewell yet
            for number in range(3):
                client.ask("/", "POST", end=False)
                await wait_until(lambda number=number: len(heard) > number)  # type: ignore[misc]
            events = client.h2.receive_data(await client.reader.read(65536))
            assert [event.last_stream_id for event in events if hasattr(event, "last_stream_id")] == [1]
            client.writer.write_eof()
            # a reset would raise
            assert await client.reader.read() == b""
        await wait_until(lambda: not room.lane.connections)


@pytest.mark.slow
async def test_who_is_slow_to_take_its_last_answer_gets_all_of_it() -> None:
    body = b"x" * 1_000_000

    async def large(exchange: HttpExchange) -> None:
        exchange.finish(200, [], body)

    async with Room(hand_over=True) as room:
        room.route(room.replica(large))
        async with Http2Client(room.port) as client:
            # all of it may be on its way at once
            client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2 * len(body)})
            client.h2.increment_flow_control_window(2 * len(body))
            client.flush()
            stream = client.ask("/")
            await client.head(stream)
            client.writer.transport.pause_reading()
            room.lane.drain(10.0)
            loop = asyncio.get_running_loop()
            end = loop.time() + SLOW_S

            def has_been_slow() -> bool:
                # it is busy, and not gone
                client.flush(frame(PING, 0, 0, b"8 bytes."))
                return loop.time() >= end

            await wait_until(has_been_slow)
            client.writer.transport.resume_reading()
            assert await client.answer(stream) == (200, body)
        await wait_until(lambda: not room.lane.connections)


async def test_who_has_been_idle_for_too_long_is_told() -> None:
    async with Room(hand_over=True, limits=Limits(idle_s=0.1)) as room:
        async with Http2Client(room.port) as client:
            assert (await client.get("/-/healthz"))[0] == 200
            await wait_until(lambda: client.goodbye == 0)
        await wait_until(lambda: not room.lane.connections)
