"""WebSockets whose connections are handed over: whose they are at each moment, how they end, and that nothing is left of them."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from servd.calls.failures import ClientGoneError
from servd.ground import descendants
from servd.observability.access_log import AccessLog
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.proxy.http1_websocket import Stage, WebSocketConnection
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from servd.replica.websocket import WebSocketExchange
from servd.wire import lending
from servd.wire.began import lending_path
from servd.wire.lending import LendingLine
from tests.fakes import Room, a_caller, hello, routing_for, targets_for, wait_until
from tests.rooms.test_hypercorn_lane import shout
from tests.rooms.test_websockets import HEAD

MIB = 1024 * 1024


async def echo(exchange: HttpExchange) -> None:
    """Each message back. "close N": closes with that code; "fail" raises; "leave" returns."""
    if exchange.scope["type"] == "http":
        await hello(exchange)
        return
    await exchange.receive()
    await exchange.send({"type": "websocket.accept", "headers": [(b"X-Kind", b"echo")]})
    while (message := await exchange.receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is not None and text.startswith("close "):
            await exchange.send({"type": "websocket.close", "code": int(text[6:]), "reason": "as asked"})
            return
        if text == "fail":
            raise RuntimeError("as asked")
        if text == "leave":
            return
        data = {"bytes": message["bytes"]} if text is None else {"text": text}
        await exchange.send({"type": "websocket.send", **data})


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with Room(hand_over=True) as made:
        made.route(made.replica(echo, limit=2))
        yield made
        await wait_until(lambda: is_at_rest(made))


def ongoing(room: Room) -> int:
    return sum(server.ongoing for server in room.servers.values())


def is_at_rest(room: Room) -> bool:
    """Nothing is left of any WebSocket."""
    doors = [server._door for server in room.servers.values()]
    pending = [c.peer.pending for c in room.caller.router_of("app_Echo").candidates if c.peer is not None]
    return not (
        ongoing(room) or room.websockets or room.handed() or any(door._bodies for door in doors) or any(pending)
    )


def connection_of(room: Room) -> WebSocketConnection:
    (found,) = room.listener.connections
    assert isinstance(found, WebSocketConnection)
    return found


def wire_of(room: Room) -> Any:
    (exchange,) = room.handed()
    return exchange._wire


def connect(room: Room, path: str = "/", **options: Any) -> Any:
    return websockets.connect(f"ws://127.0.0.1:{room.port}{path}", **options)


async def closed(socket: Any) -> tuple[int, str]:
    """Code and reason of the end that comes next."""
    async with asyncio.timeout(5):
        try:
            while True:
                await socket.recv()
        except websockets.ConnectionClosed as ended:
            received = ended.rcvd
    return (1006, "") if received is None else (received.code, received.reason)


async def test_the_proxy_counts_it_and_nothing_else(room: Room) -> None:
    async with connect(room) as socket:
        await socket.send("one")
        assert await socket.recv() == "one"
        assert connection_of(room)._stage is Stage.GIVEN
        assert (ongoing(room), room.listener.ongoing, room.lane.connections) == (1, 0, 0)
        assert room.lane._lane is None, "nobody needed it"
        assert len(room.handed()) == 1
    await wait_until(lambda: is_at_rest(room))


async def test_messages_of_each_size_and_kind_come_back(room: Room) -> None:
    async with connect(room, max_size=None) as socket:
        for size in (0, 1, 125, 126, 65535, 65536, 3 * MIB):
            for data in ("x" * size, os.urandom(size)):
                await socket.send(data)
                assert await socket.recv() == data
        await socket.send(["in ", "parts"])
        assert await socket.recv() == "in parts"
        await (await socket.ping(b"there?"))


async def test_compression_is_agreed_on_where_it_is_asked_for(room: Room) -> None:
    async with connect(room) as socket:
        assert socket.response.headers["sec-websocket-extensions"].startswith("permessage-deflate")
        for data in ("x" * 100_000, b"y" * 100_000, ""):
            await socket.send(data)
            assert await socket.recv() == data
    async with connect(room, compression=None) as socket:
        assert "sec-websocket-extensions" not in socket.response.headers


async def test_the_answer_has_what_all_answers_have(room: Room) -> None:
    async with connect(room, additional_headers={"X-Request-ID": "mine"}) as socket:
        headers = socket.response.headers
        assert (headers["x-request-id"], headers["server"], headers["x-kind"]) == ("mine", "servd", "echo")
        assert headers["date"].endswith("GMT")


@pytest.mark.parametrize("code", [1000, 1011, 4001])
async def test_the_handler_closes(room: Room, code: int) -> None:
    async with connect(room) as socket:
        await socket.send(f"close {code}")
        assert await closed(socket) == (code, "as asked")


@pytest.mark.parametrize("way", ["fail", "leave"])
async def test_the_handler_ends_without_a_farewell(room: Room, way: str) -> None:
    async with connect(room) as socket:
        await socket.send(way)
        assert await closed(socket) == (1011, "")


@pytest.mark.parametrize(("code", "heard"), [(1000, 1000), (4321, 4321), (None, 1006)])
async def test_the_handler_hears_how_its_client_ended(code: int | None, heard: int) -> None:
    ends: list[dict[str, Any]] = []

    async def listen(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] == "websocket.receive":
            pass
        ends.append(message)
        with pytest.raises(ClientGoneError):
            await exchange.send({"type": "websocket.send", "text": "nobody hears"})

    async with Room(hand_over=True) as room:
        room.route(room.replica(listen))
        socket = await connect(room)
        if code is None:
            socket.transport.abort()
        else:
            await socket.close(code, "why")
        await wait_until(lambda: is_at_rest(room))
        assert [(end["code"], end.get("reason")) for end in ends] == [(heard, "" if code is None else "why")]


async def test_what_was_said_before_the_farewell_comes_first() -> None:
    heard: list[str] = []
    go_on = asyncio.Event()

    async def late(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await exchange.receive())["type"] == "websocket.receive":
            heard.append(message["text"])

    async with Room(hand_over=True) as room:
        room.route(room.replica(late))
        socket = await connect(room, compression=None)
        sending = asyncio.create_task(_send_all(socket, 400))
        await wait_until(lambda: wire_of(room) is not None and wire_of(room)._is_held)
        assert wire_of(room)._waiting < 2 * MIB
        go_on.set()
        await sending
        await wait_until(lambda: is_at_rest(room))
        assert heard == [f"{number} {'x' * 50_000}" for number in range(400)]


async def _send_all(socket: Any, count: int) -> None:
    for number in range(count):
        await socket.send(f"{number} {'x' * 50_000}")
    await socket.close()


# --- the handshake ----------------------------------------------------------------------------------------------------


async def refuse(exchange: HttpExchange) -> None:
    """Does what the path says instead of accepting."""
    await exchange.receive()
    what = exchange.scope["path"]
    if what == "/close":
        await exchange.send({"type": "websocket.close", "code": 4000})
    elif what == "/response":
        start = {"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-why", b"tea")]}
        await exchange.send(start)
        await exchange.send({"type": "websocket.http.response.body", "body": b"a tea", "more_body": True})
        await exchange.send({"type": "websocket.http.response.body", "body": b"pot"})
    elif what == "/fail":
        raise RuntimeError("before it accepted")
    elif what == "/wait":
        await asyncio.Event().wait()
    elif what == "/break":
        await exchange.send({"type": "websocket.accept", "headers": [(b"a", b"b\r\nc: d")]})


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/close", 403, b""),
        ("/response", 418, b"a teapot"),
        ("/fail", 500, b"the WebSocket's handler ended before it accepted"),
        ("/leave", 500, b"the WebSocket's handler ended before it accepted"),
        ("/wait", 408, b"The time limit of 0.05 s passed while before the handler accepted."),
    ],
)
async def test_handshakes_that_are_refused(path: str, status: int, body: bytes, is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(refuse))
        headers = {"x-request-timeout-seconds": "0.05"} if path == "/wait" else {}
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(room, path, additional_headers=headers)
        response = refused.value.response
        assert (response.status_code, response.body) == (status, body)
        assert response.headers["connection"] == "close"
        assert response.headers.get("x-request-id") or (path == "/close" and not is_handed)
        await wait_until(lambda: is_at_rest(room))


async def test_a_scope_is_that_of_a_websocket(is_handed: bool) -> None:
    scopes = []

    async def note(exchange: HttpExchange) -> None:
        scopes.append(exchange.scope)
        await exchange.send({"type": "websocket.close"})

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(note))
        with pytest.raises(websockets.InvalidStatus):
            await connect(room)
        await wait_until(lambda: is_at_rest(room))
    assert scopes[0]["type"] == "websocket"
    # Litestar looks for a handler of its method, Starlette and Quart look here whether they may refuse with an answer
    assert "method" not in scopes[0]
    assert scopes[0]["extensions"] == {"websocket.http.response": {}}


async def test_a_line_break_in_a_header_is_no_answer() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(refuse))
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(room, "/break")
        assert refused.value.response.status_code == 500
        await wait_until(lambda: is_at_rest(room))


@pytest.mark.parametrize("path", ["/nowhere", "/-/healthz"])
async def test_where_nothing_is_routed(path: str, is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(echo), prefix="/app")
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(room, path)
        assert refused.value.response.status_code == (200 if path == "/-/healthz" else 404)


async def test_a_full_line_is_a_503(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(echo, limit=1), max_queued_requests=0)
        async with connect(room) as socket:
            await socket.send("a")
            assert await socket.recv() == "a"
            with pytest.raises(websockets.InvalidStatus) as refused:
                await connect(room)
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["retry-after"] == "1"


async def test_the_limit_of_a_replica_holds_for_connections(room: Room) -> None:
    first, second = await connect(room), await connect(room)
    waiting = asyncio.create_task(connect(room).__aenter__())
    await wait_until(lambda: len(room.caller.router_of("app_Echo").line) == 1)
    assert (ongoing(room), len(room.handed())) == (2, 2)
    # no further connection lies there
    assert not any(server._door._bodies for server in room.servers.values())
    await first.close()
    third = await waiting
    await third.send("now")
    assert await third.recv() == "now"
    assert len(room.handed()) == 2
    await second.close()
    await third.close()


async def test_a_request_that_one_replica_refuses_goes_to_another(room: Room) -> None:
    other = room.replica(echo, limit=5)
    room.route(*room.servers)
    sockets = [await connect(room) for _ in range(7)]
    assert ongoing(room) == 7
    assert room.servers[other].ongoing == 5
    known = {(exchange._peer.key, exchange.call_id) for exchange in room.handed()}
    assert not any(server._door._bodies.keys() - known for server in room.servers.values())
    for each in sockets:
        await each.close()


async def test_it_waits_for_a_replica() -> None:
    async with Room(hand_over=True) as room:
        room.route()
        opening = asyncio.create_task(connect(room).__aenter__())
        await wait_until(lambda: len(room.caller.router_of("app_Echo").line) == 1)
        room.route(room.replica(echo))
        socket = await opening
        assert len(room.handed()) == 1, "though it had to be asked first whether it takes it"
        await socket.close()


async def test_bytes_behind_the_handshake_are_the_replicas(room: Room) -> None:
    frame = b"\x81\x82\x00\x00\x00\x00hi"
    got = await room.raw(HEAD + b"\r\n" + frame * 3, until=b"hi\x81\x02hi\x81\x02hi")
    assert got.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert got.endswith(b"\r\n\r\n" + b"\x81\x02hi" * 3)


async def test_early_bytes_are_bounded() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(refuse))
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(HEAD.replace(b"GET /", b"GET /wait") + b"\r\n")
        await wait_until(lambda: ongoing(room) == 1)
        connection = connection_of(room)
        while not connection._is_read_paused:
            writer.write(b"x" * 10_000)
            await asyncio.sleep(0.001)
        assert len(connection._early) < 400_000
        writer.transport.abort()

        def is_gone() -> bool:
            connection.check_time(1, False)
            return is_at_rest(room)

        await wait_until(is_gone)


async def test_behind_a_request_on_the_same_connection(room: Room) -> None:
    got = await room.raw(
        b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD + b"\r\n\x81\x82\x00\x00\x00\x00hi", until=b"\x81\x02hi"
    )
    assert got.index(b"GET /a") < got.index(b"HTTP/1.1 101")


# --- ends that nobody said --------------------------------------------------------------------------------------------


async def test_the_replica_dies(room: Room) -> None:
    async with connect(room) as socket:
        await socket.send("a")
        assert await socket.recv() == "a"
        (exchange,) = room.handed()
        # what the kernel does at a death: the descriptor is closed, and the link ends
        exchange._peer.open.clear()
        wire = exchange._wire
        assert wire is not None
        wire._stop_reading()
        descendants.show(wire._socket.fileno())
        wire._socket.close()
        wire.is_over = wire.is_closing = True
        (candidate,) = room.caller.router_of("app_Echo").candidates
        candidate.peer.link._lose("its connection ended")
        assert await closed(socket) == (1006, "")
        await wait_until(lambda: not room.listener.connections)
        assert exchange._over is not None
        exchange._over.set_result(None)
        assert exchange.task is not None
        exchange.task.cancel()
    room.route()


async def test_the_proxy_dies(room: Room) -> None:
    """The replica tells the client, behind what was on its way."""
    text = "a" * 8 * MIB
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1)
    writer.write(HEAD + b"\r\n" + b"\x81\xff" + len(text).to_bytes(8, "big") + b"\0\0\0\0" + text.encode())
    await wait_until(lambda: bool(room.handed()) and room.handed()[0]._wire is not None)
    (exchange,) = room.handed()
    wire = exchange._wire
    assert wire is not None
    await wait_until(lambda: wire._unsent_bytes > 0)
    connection = connection_of(room)
    # a death says nothing, neither to the client nor to the replica
    room.caller.close()
    await wait_until(lambda: exchange.is_disconnected)
    got, farewell = b"", b"\x88\x02" + (1012).to_bytes(2, "big")
    async with asyncio.timeout(5):
        while not got.endswith(farewell):
            got += await reader.read(MIB)
    assert got.endswith(text[-1000:].encode() + farewell)
    writer.write(b"\x88\x80\0\0\0\0")
    writer.close()
    await wait_until(lambda: ongoing(room) == 0 and wire.is_over)
    room.listener.connections.discard(connection)
    connection._transport.abort()
    for candidate in room.caller.router_of("app_Echo").candidates:
        assert candidate.peer is not None
        candidate.peer.pending.clear()


async def test_the_proxy_drains(room: Room) -> None:
    async with connect(room) as socket:
        await socket.send("a")
        assert await socket.recv() == "a"
        room.listener.drain()
        assert await closed(socket) == (1012, "")
    await wait_until(lambda: is_at_rest(room))
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(room)
    assert refused.value.response.status_code == 503


async def test_the_proxy_drains_during_a_handshake() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(refuse))
        opening = asyncio.create_task(connect(room, "/wait").__aenter__())
        await wait_until(lambda: ongoing(room) == 1)
        room.listener.drain()
        with pytest.raises(websockets.InvalidStatus) as refused:
            await opening
        assert refused.value.response.status_code == 503
        await wait_until(lambda: is_at_rest(room))


async def test_the_replica_ends(is_handed: bool) -> None:
    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        address = room.replica(echo)
        room.route(address)
        async with connect(room) as socket:
            await socket.send("a")
            assert await socket.recv() == "a"
            room.servers[address].drain()
            assert room.servers[address].restart_websockets()
            assert await closed(socket) == (1012, "")
        await wait_until(lambda: is_at_rest(room))
        assert not room.servers[address].restart_websockets()


async def test_a_handler_that_does_not_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.proxy.http1_websocket.GOODBYE_S", 0.05)
    was_cancelled = asyncio.Event()

    async def stubborn(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    async with Room(hand_over=True) as room:
        room.route(room.replica(stubborn))
        await (await connect(room)).close()
        await wait_until(lambda: not room.websockets)
        async with asyncio.timeout(5):
            await was_cancelled.wait()
        await wait_until(lambda: is_at_rest(room))


async def test_a_client_that_answers_no_farewell(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.wire.websocket.connection._FAREWELL_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    writer.write(HEAD + b"\r\n\x81\x8a\x00\x00\x00\x00close 1000")
    await reader.readuntil(b"as asked")
    assert await reader.read() == b""
    writer.close()
    await wait_until(lambda: is_at_rest(room))


async def test_a_client_whose_host_has_vanished(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    writer.write(HEAD + b"\r\n")
    await reader.readuntil(b"\r\n\r\n")
    connection = connection_of(room)
    await wait_until(lambda: connection._stage is Stage.GIVEN)
    monkeypatch.setattr(type(connection._silence), "look", lambda *_: True)
    connection.check_time(1, False)
    await wait_until(lambda: is_at_rest(room))
    writer.transport.abort()


async def test_a_client_that_sends_pings_and_reads_no_pongs(room: Room) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write(HEAD + b"\r\n")
    await wait_until(lambda: bool(room.handed()) and room.handed()[0].is_handed)
    wire = wire_of(room)
    ping = b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125
    for _ in range(400):
        writer.write(ping * 200)
        await asyncio.sleep(0)
        if wire._is_held and wire._unsent_bytes >= MIB:
            break
    await asyncio.sleep(0.05)
    assert wire._unsent_bytes < 2 * MIB
    writer.transport.abort()
    wire.turn()


# --- what cannot be handed over ---------------------------------------------------------------------------------------


async def works(room: Room, *, is_handed: bool) -> None:
    async with connect(room) as socket:
        await socket.send("a")
        assert await socket.recv() == "a"
        assert bool([each for each in room.handed() if each.is_handed]) == is_handed
        assert (room.lane.connections == 0) == is_handed


async def test_where_the_door_is_gone(room: Room) -> None:
    await works(room, is_handed=True)
    (address,) = room.servers
    room.servers[address]._door.close()
    assert not os.path.exists(lending_path(address) or "")
    await works(room, is_handed=False)
    # by then it was made again
    await works(room, is_handed=True)


async def test_where_no_descriptor_is_to_spare(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    await works(room, is_handed=True)
    monkeypatch.setattr(lending, "is_one_of_the_last", lambda _: True)
    await works(room, is_handed=False)


async def test_where_it_cannot_be_told_at_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is full for a moment: it is tried again."""
    await works(room, is_handed=True)
    lend, left = LendingLine.lend, 3

    def later(line: LendingLine, *loan: Any) -> bool:
        nonlocal left
        left -= 1
        return left < 0 and lend(line, *loan)

    monkeypatch.setattr(LendingLine, "lend", later)
    await works(room, is_handed=True)
    left = 10**9
    monkeypatch.setattr("servd.proxy.http1_websocket._PATIENCE_S", 0.02)
    await works(room, is_handed=False)


async def test_where_the_library_is_not_there(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.replica.websocket_start._WEBSOCKET", "servd.replica.no_such_module")
    await works(room, is_handed=False)


async def test_a_slot_that_was_offered_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo, limit=1))
        first = await connect(room)
        waiting = asyncio.create_task(connect(room).__aenter__())
        await wait_until(lambda: len(room.caller.router_of("app_Echo").line) == 1)
        monkeypatch.setattr("servd.proxy.http1_websocket._PATIENCE_S", 0.0)
        monkeypatch.setattr(LendingLine, "lend", lambda *_: False)
        await first.close()
        second = await waiting
        await second.send("a")
        assert await second.recv() == "a"
        await second.close()
        await wait_until(lambda: is_at_rest(room))
        (server,) = room.servers.values()
        assert (server.admission.running, server.admission.held) == (0, 0)


async def test_replicas_of_earlier_editions() -> None:
    async with Room(hand_over=True, takes_websockets=False) as room:
        room.route(room.replica(echo))
        await works(room, is_handed=False)


async def test_two_kinds_of_replicas() -> None:
    async with Room(hand_over=True) as room:
        new = room.replica(echo)
        room.takes_websockets = False
        old = room.replica(echo)
        room.route(new, old)
        sockets = [await connect(room) for _ in range(20)]
        for each in sockets:
            await each.send("a")
            assert await each.recv() == "a"
        # who is sent back by the one may come to the other, on the old way
        assert 0 < len(room.handed()) <= room.servers[new].ongoing
        assert room.servers[old].ongoing > 0
        for each in sockets:
            await each.close()
        await wait_until(lambda: is_at_rest(room))


# --- books ------------------------------------------------------------------------------------------------------------


async def test_the_access_log(room: Room, tmp_path: Path, is_handed: bool) -> None:
    log = AccessLog(LogFile(tmp_path / "x.log"), "http_proxy", "here", ("http1.py", 7))
    journal = room.forwarder.journal = Journal(asyncio.get_running_loop(), log)
    for server in room.servers.values():
        server._door.takes_websockets = is_handed
    async with connect(room, "/a/b?c=d", additional_headers={"X-Request-ID": "mine"}) as socket:
        await socket.send("x" * 1000)
        await socket.recv()
        await socket.send(b"y" * 500)
        await socket.recv()
    await wait_until(lambda: not room.websockets)
    journal.settle()
    (line,) = (tmp_path / "x.log").read_text().splitlines()
    assert " mine " in line
    assert " WEBSOCKET /a/b 101 " in line
    if is_handed:
        assert " 1500B 127.0.0.1 " in line


async def test_the_handler_sees_the_same_scope(is_handed: bool) -> None:
    seen: list[Any] = []

    async def note(exchange: HttpExchange) -> None:
        scope = exchange.scope
        seen.append({**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"sec-websocket-key"]})
        seen.append((exchange.context.request_id, exchange.context.route, exchange.context.multiplexed_model_id))
        await shout(exchange)

    async with Room(hand_over=True, takes_websockets=is_handed, root_path="/root") as room:
        room.route(room.replica(note), prefix="/app")
        headers = {"X-Request-ID": "mine", "serve_multiplexed_model_id": "m1"}
        async with connect(room, "/root/app/a%20b?c=d", subprotocols=["v1", "v2"], additional_headers=headers):
            pass
        scope = seen[0]
        names = ("type", "path", "raw_path", "query_string", "root_path", "scheme", "http_version", "subprotocols")
        assert {name: scope[name] for name in names} == {
            "type": "websocket",
            "path": "/root/app/a b",
            "raw_path": b"/root/app/a%20b",
            "query_string": b"c=d",
            "root_path": "/root/app",
            "scheme": "ws",
            "http_version": "1.1",
            "subprotocols": ["v1", "v2"],
        }
        assert scope["client"][0] == "127.0.0.1"
        assert scope["server"] == ("127.0.0.1", room.port)
        assert {b"host", b"upgrade", b"connection", b"sec-websocket-version"} <= {name for name, _ in scope["headers"]}
        assert [value for name, value in scope["headers"] if name == b"x-request-id"] == [b"mine"]
        assert seen[1] == ("mine", "/app", "m1")


async def test_programs_that_a_handler_starts_do_not_hold_it(room: Room) -> None:
    async with connect(room) as socket:
        await socket.send("a")
        await socket.recv()
        number = wire_of(room)._socket.fileno()
        assert number in descendants._hidden
        assert not os.get_inheritable(number)
    await wait_until(lambda: is_at_rest(room))
    assert number not in descendants._hidden


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def one(room: Room, number: int) -> None:
    """A WebSocket that ends in one of many ways, soon or late."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
    except OSError:
        return
    try:
        path = (b"/", b"/", b"/", b"/refused")[number % 4]
        writer.write(HEAD.replace(b"GET /", b"GET " + path) + b"\r\n" + b"\x81\x82\x00\x00\x00\x00hi" * (number % 3))
        end = number // 4 % 5
        async with asyncio.timeout(5):
            if end:
                await reader.readuntil(b"\r\n\r\n")
            if end == 1:
                writer.write(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
                await reader.read()
            elif end == 2:
                writer.write(b"\x81\x8a\x00\x00\x00\x00close 4000")
                if number % 7:
                    # the others say nothing more
                    writer.write(b"\x88\x80\0\0\0\0")
                await reader.read()
            elif end == 3:
                # against the rules
                writer.write(b"\xff\x80\0\0\0\0")
                await reader.read()
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort()


async def serve(exchange: HttpExchange) -> None:
    if exchange.scope["path"] == "/refused":
        await exchange.send({"type": "websocket.close"})
    else:
        await echo(exchange)


async def test_the_time_limit_of_a_handshake_that_tells_a_length_ends_with_it() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(HEAD + b"content-length: 0\r\nx-request-timeout-seconds: 0.05\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        with pytest.raises(TimeoutError):
            # nothing but a clock could write here
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        writer.write(b"\x81\x81\0\0\0\0x")
        assert await asyncio.wait_for(reader.readexactly(3), 5) == b"\x81\x01x"
        writer.close()


@pytest.mark.parametrize("count", [400, pytest.param(50_000, marks=pytest.mark.long)])
async def test_no_descriptor_is_left_after_a_storm(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.proxy.http1_websocket.GOODBYE_S", 0.05)
    monkeypatch.setattr("servd.wire.websocket.connection._FAREWELL_S", 0.05)
    handed = 0
    begin = WebSocketExchange.feed_body

    def counted(exchange: WebSocketExchange, *args: Any) -> None:
        nonlocal handed
        begin(exchange, *args)
        handed += exchange.is_handed

    monkeypatch.setattr(WebSocketExchange, "feed_body", counted)
    async with Room(hand_over=True, limits=Limits(ws_ping_interval_s=0)) as room:
        room.route(room.replica(serve, limit=20), room.replica(serve, limit=5))
        other = a_caller()
        other.apply_routing(routing_for(targets_for(*room.servers)))
        await asyncio.gather(*(one(room, number) for number in range(100)))
        await wait_until(lambda: is_at_rest(room), 20)
        before = open_descriptors()
        for start in range(0, count, 100):
            await asyncio.gather(*(one(room, number) for number in range(start, start + 100)))
        await wait_until(lambda: is_at_rest(room), 20)
        assert handed > count // 2
        await wait_until(lambda: open_descriptors() <= before)
        other.close()
