"""Request routers over real sockets: what belongs together reaches one replica, from every lane, and admission stays exact."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import websockets

from servd.calls.caller import Caller
from servd.calls.pickling import dumps, loads
from servd.calls.process import install_process, remove_process
from servd.calls.request_context import NO_REQUEST
from servd.calls.request_router import FIRST_OF_LINE
from servd.ground.ids import DeploymentID
from servd.handle import DeploymentHandle
from servd.replica.caller_peer import CallerPeer
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, routing_for, targets_for, wait_until
from tests.rooms.http2_client import Http2Client

LIMIT_S = 10.0
NAMES = ("a", "b", "c", "d")
STICKY: dict[str, Any] = {"name": "consistent_hash"}
PREFIX: dict[str, Any] = {"name": "prefix"}


def a_replica(room: Room, name: str, **options: Any) -> str:
    """One that answers with its name over HTTP, WebSockets and handles; `hold` keeps its slot until the test's end."""

    async def http(exchange: HttpExchange) -> None:
        if exchange.scope["type"] == "websocket":
            await exchange.send({"type": "websocket.accept"})
            await exchange.send({"type": "websocket.send", "text": name})
            await exchange.send({"type": "websocket.close"})
        else:
            exchange.finish(200, [(b"content-type", b"text/plain")], name.encode())

    async def say(*_: Any) -> str:
        return name

    async def hold() -> None:
        await asyncio.Event().wait()

    return room.replica(http, {"say": say, "hold": hold}, **options)


def calls_that_fit(room: Room) -> int:
    """How many more calls may wait."""
    router = room.caller.router_of("app_Echo")
    return router.targets.max_queued_requests - len(router.line)


def four(room: Room, **options: Any) -> list[str]:
    return [a_replica(room, name, **options) for name in NAMES]


@pytest.fixture(autouse=True)
def _without_a_process() -> Iterator[None]:
    yield
    remove_process()


async def body(room: Room, *headers: str, **options: Any) -> str:
    answer = await room.get("/", *headers, **options)
    return answer.rpartition(b"\r\n\r\n")[2].decode()


async def test_a_session_reaches_one_replica_over_every_lane() -> None:
    async with Room(hand_over=True) as room:
        room.route(*four(room), router=STICKY)
        install_process(room.caller, asyncio.get_running_loop())
        homes = {session: await body(room, f"X-Session-Id: {session}") for session in map(str, range(12))}
        assert len(set(homes.values())) > 1
        for session, home in homes.items():
            assert await body(room, f"x_session_id: {session}") == home
            handle: Any = DeploymentHandle(DeploymentID("Echo", "app")).options(session_id=session)
            assert await handle.say.remote() == home
        session, home = homes.popitem()
        headers = {"x-session-id": session}
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", additional_headers=headers) as socket:
            assert await socket.recv() == home
        async with Http2Client(room.port) as client:
            assert (await client.get("/", **{"x-session-id": session}))[1].decode() == home


async def test_texts_that_begin_alike_reach_one_replica() -> None:
    async with Room() as room:
        room.route(*four(room), router=PREFIX)
        install_process(room.caller, asyncio.get_running_loop())
        handle: Any = DeploymentHandle(DeploymentID("Echo", "app"))
        prompts = [letter * 300 for letter in "wxyz"]
        homes = [await body(room, method="POST", body=b'{"prompt": "%b 1"}' % prompt.encode()) for prompt in prompts]
        assert sorted(homes) == list(NAMES)
        for prompt, home in zip(prompts, homes, strict=True):
            assert await body(room, method="POST", body=b'{"n": 1, "prompt": "%b 2"}' % prompt.encode()) == home
            assert await handle.say.remote({"messages": [{"content": f"{prompt} 3"}]}) == home


async def test_a_full_replica_passes_a_session_on_and_gets_it_back() -> None:
    async with Room() as room:
        room.route(*four(room, limit=1), router=STICKY)
        home = await body(room, "x-session-id: 1")
        order = [home]
        held = []
        for taken in range(1, 5):
            held.append(room.caller.submit_call("app_Echo", "hold", dumps(((), {})), NO_REQUEST, session_id="1"))
            if taken < 4:
                order.append(await body(room, "x-session-id: 1"))
        # each in the ring's order, none twice
        assert sorted(order) == list(NAMES)
        waiting = asyncio.create_task(body(room, "x-session-id: 1"))
        await wait_until(lambda: room.caller.queued() == {"app_Echo": 1})
        # all are full: the first slot that is free takes it
        held[2].cancel()
        async with asyncio.timeout(LIMIT_S):
            assert await waiting == order[2]
        for ticket in held:
            ticket.cancel()
        await wait_until(lambda: not any(server.ongoing for server in room.servers.values()))
        # the caller hears of it a moment later
        await wait_until(lambda: not any(c.is_full for c in room.caller.router_of("app_Echo").candidates))
        assert await body(room, "x-session-id: 1") == home


@pytest.mark.parametrize("router", [STICKY, PREFIX])
async def test_calls_that_came_before_the_replicas_go_where_they_belong(router: dict[str, Any]) -> None:
    async with Room() as room:
        calls = [
            room.caller.submit_call(
                "app_Echo", "say", dumps(((), {})), NO_REQUEST, session_id=key, arguments=((key * 100,), {})
            )
            for key in "abcdefgh"
            for _ in range(2)
        ]
        room.route(*four(room), router=router)
        async with asyncio.timeout(LIMIT_S):
            found = [loads(await call) for call in calls]
        assert found[::2] == found[1::2]
        assert len(set(found)) > 1


class Shy:
    """An argument whose attributes may not be looked at."""

    looks = 0

    @property
    def prompt(self) -> str:
        type(self).looks += 1
        raise RuntimeError("not now")


async def test_arguments_are_looked_at_where_the_router_wants_a_text_only() -> None:
    async with Room() as room:
        install_process(room.caller, asyncio.get_running_loop())
        handle: Any = DeploymentHandle(DeploymentID("Echo", "app"))
        early = handle.say.remote(Shy())
        address = a_replica(room, "a"), a_replica(room, "b")
        room.route(*address)
        for router in ({"name": "least_loaded"}, STICKY, {}):
            room.route(*address, router=router)
            assert await handle.say.remote(Shy()) in NAMES
        assert await early in NAMES
        assert Shy.looks == 0
        room.route(*address, router=PREFIX)
        assert await handle.say.remote(Shy()) in NAMES
        assert Shy.looks > 0


@pytest.mark.parametrize(("router", "most"), [({"name": "round_robin"}, 0), (STICKY, 2 * FIRST_OF_LINE)])
async def test_a_long_line_is_not_thrown_at_the_first_replicas(
    router: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = []
    reject = CallerPeer.reject
    monkeypatch.setattr(CallerPeer, "reject", lambda peer, *about: (rejected.append(about), reject(peer, *about)))
    async with Room() as room:
        # as many as may wait: those that come back find the line full, and keep their place all the same
        room.route(router=router, may_grow=True, max_queued_requests=100)
        calls = [
            room.caller.submit_call("app_Echo", "say", dumps(((), {})), NO_REQUEST, session_id=str(number))
            for number in range(100)
        ]
        room.route(*four(room, limit=1)[:2], router=router, max_queued_requests=100)
        calls += [
            room.caller.submit_call("app_Echo", "say", dumps(((), {})), NO_REQUEST) for _ in range(calls_that_fit(room))
        ]
        async with asyncio.timeout(LIMIT_S):
            assert {loads(await call) for call in calls} == {"a", "b"}
    assert len(rejected) <= most


async def test_news_of_no_replica_leave_the_line_as_it_is() -> None:
    told: list[Any] = []
    caller = Caller(asyncio.get_running_loop(), "test", lambda _: None, on_waiting=told.append)
    caller.apply_routing(routing_for(targets_for(router=STICKY, may_grow=True)))
    for _ in range(3):
        caller.submit_call("app_Echo", "say", [], NO_REQUEST)
    line = caller.router_of("app_Echo").line
    since = [call.waits_since for call in line]
    caller.apply_routing(routing_for(targets_for(router=STICKY, may_grow=True, max_queued_requests=1)))
    assert [call.waits_since for call in line] == since
    assert len(told) == 1
    assert caller.queued() == {"app_Echo": 3}
    caller.close()


async def test_the_router_changes_while_requests_go_on() -> None:
    async with Room() as room:
        addresses = four(room)
        room.route(*addresses, router={"name": "round_robin"})
        assert {await body(room, "x-session-id: 1") for _ in range(4)} == set(NAMES)
        room.route(*addresses, router=STICKY)
        assert len({await body(room, "x-session-id: 1") for _ in range(8)}) == 1
        room.route(*addresses, router={"name": "least_loaded"})
        assert len({await body(room, "x-session-id: 1") for _ in range(40)}) > 1
