import asyncio
import errno

import httpx
import pytest
import websockets

from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, hello, wait_until
from tests.rooms.test_http1_lane import echo


async def shout(exchange: HttpExchange) -> None:
    if exchange.scope["type"] == "http":
        await hello(exchange)
        return
    assert (await exchange.receive())["type"] == "websocket.connect"
    await exchange.send({"type": "websocket.accept", "subprotocol": (exchange.scope["subprotocols"] or [None])[0]})
    while True:
        message = await exchange.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "bye":
            await exchange.send({"type": "websocket.close", "code": 4001})
            return
        await exchange.send({"type": "websocket.send", "text": message["text"].upper()})


async def test_websocket(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(shout)
        room.route(address)
        uri = f"ws://127.0.0.1:{room.port}/chat"
        async with websockets.connect(uri, subprotocols=["v1"]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "v1"
            for text in ("one", "two"):
                await socket.send(text)
                assert await socket.recv() == text.upper()
        await wait_until(lambda: room.servers[address].ongoing == 0)
        async with websockets.connect(uri) as socket:
            await socket.send("bye")
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4001
        await wait_until(lambda: not room.websockets)


async def test_websocket_to_nowhere_is_refused(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(shout), prefix="/a")
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{room.port}/nowhere", additional_headers={"X-Request-ID": "mine"})
        response = refused.value.response
        assert (response.status_code, response.headers["x-request-id"]) == (404, "mine")


async def test_early_bytes_wait_for_the_handshake(is_handed: bool) -> None:
    go_on = asyncio.Event()

    async def late(exchange: HttpExchange) -> None:
        await go_on.wait()
        await shout(exchange)

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(late)
        room.route(address)
        head = (
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        frame = b"\x81\x82\x00\x00\x00\x00hi"
        reading = asyncio.create_task(room.raw(head + frame, until=b"HI"))
        await wait_until(lambda: room.servers[address].ongoing == 1)
        go_on.set()
        assert (await reading).startswith(b"HTTP/1.1 101")
        await wait_until(lambda: not room.websockets)
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_client_that_leaves_during_the_handshake_leaves_nothing_behind(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(lambda _: asyncio.Event().wait())
        room.route(address)
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly"
        )
        await wait_until(lambda: room.servers[address].ongoing == 1)
        writer.close()
        await wait_until(lambda: not room.websockets)
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_http2_by_prior_knowledge() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo))
        async with httpx.AsyncClient(http1=False, http2=True) as client:
            url = f"http://127.0.0.1:{room.port}"
            answers = await asyncio.gather(*(client.post(f"{url}/x", content=b"%d" % n) for n in range(20)))
            assert [(a.http_version, a.text) for a in answers] == [("HTTP/2", str(n)) for n in range(20)]
            large = await client.post(f"{url}/x", content=b"y" * 3_000_000)
            assert len(large.content) == 3_000_000
            assert (await client.get(f"{url}/-/healthz")).text == "success"
            assert len(answers[0].headers["x-request-id"]) == 36
        await wait_until(lambda: not room.lane.connections)


async def test_http2_answer_before_the_body_arrived() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica())
        async with httpx.AsyncClient(http1=False, http2=True) as client:
            url = f"http://127.0.0.1:{room.port}/x"
            assert (await client.post(url, content=b"y" * 3_000_000)).status_code == 200
            assert (await client.get(url)).status_code == 200


async def test_preface_then_silence_is_ended() -> None:
    async with Room(hand_over=True, limits=Limits(idle_s=0.1)) as room:
        room.route(room.replica())
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        for start in range(0, len(preface), 5):
            writer.write(preface[start : start + 5])
            await asyncio.sleep(0)
        async with asyncio.timeout(3):
            await reader.read()
        writer.close()
        await wait_until(lambda: not room.lane.connections)


async def test_drain_says_goodbye(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(shout)
        room.route(address)
        socket = await websockets.connect(f"ws://127.0.0.1:{room.port}/chat")
        async with httpx.AsyncClient(http1=False, http2=True) as client:
            assert (await client.get(f"http://127.0.0.1:{room.port}/x")).status_code == 200
            await wait_until(lambda: room.websockets == 2)
            room.listener.drain()
            room.lane.drain(10.0)
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            await wait_until(lambda: not room.websockets)
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_connections_that_come_while_the_lane_is_loaded_wait_for_it() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(shout))
        assert "lane=None" in repr(room.lane)
        uri = f"ws://127.0.0.1:{room.port}/chat"
        gone = await asyncio.open_connection("127.0.0.1", room.port)
        gone[1].write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        gone[1].close()
        sockets = await asyncio.gather(*(websockets.connect(uri) for _ in range(3)))
        for socket in sockets:
            await socket.send("one")
            assert await socket.recv() == "ONE"
            await socket.close()
        await wait_until(lambda: not room.lane.connections)


@pytest.mark.parametrize("is_http2", [True, False])
@pytest.mark.parametrize("deed", ["turn", "drain", "close"])
async def test_a_connection_is_looked_at_before_its_first_turn(deed: str, is_http2: bool) -> None:
    async with Room(hand_over=True, limits=Limits(idle_s=0.5)) as room:
        room.route(room.replica(shout))
        async with httpx.AsyncClient(http1=False, http2=True) as client:
            assert (await client.get(f"http://127.0.0.1:{room.port}/x")).status_code == 200
        await wait_until(lambda: not room.lane.connections)
        take = room.listener.hand_over
        failed: list[BaseException] = []

        def take_and_look(transport: asyncio.Transport, data: bytes) -> None:
            take(transport, data)
            assert room.lane.connections == 1
            try:
                room.lane.drain(0.0) if deed == "drain" else getattr(room.lane, deed)()
            except Exception as error:
                failed.append(error)

        room.listener.hand_over = take_and_look
        head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \r\n\r\n"
        # it ends: at once where it is cut off, else when it has been idle
        await room.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if is_http2 else head, timeout_s=5)
        await wait_until(lambda: not room.lane.connections)
        assert failed == []


async def test_a_lane_that_could_not_be_loaded_is_loaded_for_the_next_that_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(name: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files", name)

    async with Room(hand_over=True, takes_websockets=False) as room:
        room.route(room.replica(shout))
        with monkeypatch.context() as without_descriptors:
            without_descriptors.setattr("servd.proxy.late_lane.load", fail)
            with pytest.raises(websockets.InvalidMessage):
                await websockets.connect(f"ws://127.0.0.1:{room.port}/chat")
        assert "lane_not_loaded connections=1" in caplog.text
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/chat") as socket:
            await socket.send("one")
            assert await socket.recv() == "ONE"
