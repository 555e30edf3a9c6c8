"""The control endpoint: who may speak, what each peer is told, when everybody has it."""

import asyncio
import contextlib
import functools
import os
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servd.controller.control_server import ControlServer
from servd.daemon.unix_sockets import bind_unix
from servd.ground.clock import block_for
from servd.wire.codec import RecordReader, record
from servd.wire.messages import (
    CallerReport,
    DeploymentTargets,
    Endpoint,
    Hello,
    ProxyReport,
    Refused,
    ReplicaReport,
    Route,
    Routing,
    Subscribe,
)

LIMIT_S = 5.0


class News:
    """Remembers what the server tells; refuses ids that begin with "bad"."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()

    def greeted(self, hello: Hello, pid: int) -> bool:
        self.heard.put_nowait(("greeted", hello.id, pid))
        return not hello.id.startswith("bad")

    def received(self, role: str, peer_id: str, message: Any) -> None:
        self.heard.put_nowait((role, peer_id, message))

    def queued(self, caller: str, deployment: str, waiting: int) -> None:
        self.heard.put_nowait((caller, deployment, waiting))

    async def next(self) -> Any:
        return await asyncio.wait_for(self.heard.get(), LIMIT_S)


class Peer:
    """A process on a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._records = RecordReader()
        self._found: list[Any] = []

    def say(self, *messages: Any) -> None:
        self._writer.write(b"".join(map(record, messages)))

    async def hear(self) -> Any:
        while not self._found:
            data = await asyncio.wait_for(self._reader.read(65536), LIMIT_S)
            if not data:
                return None
            self._found += self._records.feed(data)
        return self._found.pop(0)

    def leave(self) -> None:
        self._writer.close()

    async def left(self) -> None:
        self.leave()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Room:
    def __init__(self, path: str) -> None:
        self.path = path
        self.news = News()
        self.server = ControlServer(self.news, first_generation=100)
        self._peers: list[Peer] = []

    async def line(self) -> Peer:
        self._peers.append(Peer(*await asyncio.open_unix_connection(self.path)))
        return self._peers[-1]

    async def close(self) -> None:
        self.server.close()
        for peer in self._peers:
            await peer.left()

    async def join(self, role: str, name: str, *more: Any) -> Peer:
        peer = await self.line()
        peer.say(Hello(role, name, os.getpid(), 0, "token"), *more)
        assert await self.news.next() == ("greeted", name, os.getpid())
        return peer


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(str(tmp_path / "control.sock"))
    await room.server.open(bind_unix(room.path))
    yield room
    await room.close()


def a_routing(*deployments: str, ingress: str = "app_I") -> Routing:
    targets = tuple(
        DeploymentTargets(name, "app", endpoints=(Endpoint(f"{name}#r", f"ipc:///{name}"),)) for name in deployments
    )
    return Routing(0, (Route("/", ingress, "app"),), targets)


async def test_the_endpoint_is_private_and_replaces_a_stale_file(tmp_path: Path) -> None:
    bind_unix(str(tmp_path / "c")).close()
    room = Room(str(tmp_path / "c"))
    await room.server.open(bind_unix(room.path))
    assert stat.S_IMODE(os.stat(room.path).st_mode) == 0o600
    await room.join("proxy", "p")
    await room.close()


async def test_a_proxy_gets_routes_and_ingress_targets_a_caller_what_it_subscribed_to(room: Room) -> None:
    proxy = await room.join("proxy", "p")
    caller = await room.join("caller", "c", Subscribe(("app_D", "app_X")))
    room.server.publish(a_routing("app_D", "app_E", "app_I"))
    told = await proxy.hear()
    assert (told.generation, [t.deployment for t in told.targets], len(told.routes)) == (101, ["app_I"], 1)
    told = await caller.hear()
    assert [(t.deployment, t.exists) for t in told.targets] == [("app_D", True), ("app_X", False)]
    assert told.routes == ()


async def test_what_many_are_told_is_worded_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = [await room.join("caller", f"c{number}", Subscribe(("app_D",))) for number in range(4)]
    other = await room.join("caller", "other", Subscribe(("app_E",)))
    # so that all have said what they subscribe to
    room.server.publish(a_routing("app_D", "app_E"))
    for peer in [*callers, other]:
        assert (await peer.hear()).generation == 101
    worded: list[Any] = []

    def counted(message: Any) -> bytes:
        worded.append(message)
        return record(message)

    monkeypatch.setattr("servd.controller.control_server.record", counted)
    room.server.publish(a_routing("app_D", "app_D2", "app_E"))
    assert worded == [], "nothing that they subscribed to has changed"
    changed = replace(a_routing("app_E").targets[0], may_grow=True)
    room.server.publish(Routing(0, (), (replace(changed, deployment="app_D"), a_routing("app_E").targets[0])))
    assert [(await peer.hear()).generation for peer in callers] == [103] * 4
    assert len(worded) == 1


async def test_what_a_build_may_still_bring_is_waited_for(room: Room) -> None:
    caller = await room.join("caller", "c", Subscribe(("new_D", "newer_D")))
    room.server.publish(Routing(0, building=("new",)))
    told = await caller.hear()
    assert [(t.deployment, t.exists) for t in told.targets] == [("new_D", True), ("newer_D", False)]
    room.server.publish(Routing(0))
    told = await caller.hear()
    assert [(t.deployment, t.exists) for t in told.targets] == [("new_D", False), ("newer_D", False)]


async def test_a_proxy_is_told_an_empty_routing_a_caller_is_not(room: Room) -> None:
    room.server.publish(Routing(0))
    proxy = await room.join("proxy", "p")
    assert await proxy.hear() == Routing(101)
    await room.join("caller", "c")
    done = asyncio.Event()
    proxy.say(CallerReport(101))
    room.server.after_acknowledged(LIMIT_S, done.set)
    await asyncio.wait_for(done.wait(), LIMIT_S)


async def test_subscribing_later_brings_the_present_routing(room: Room) -> None:
    room.server.publish(a_routing("app_D"))
    replica = await room.join("replica", "r")
    replica.say(Subscribe(("app_D",)))
    assert [t.deployment for t in (await replica.hear()).targets] == ["app_D"]


async def test_what_does_not_concern_a_peer_is_not_sent_to_it(room: Room) -> None:
    caller = await room.join("caller", "c", Subscribe(("app_D",)))
    room.server.publish(a_routing("app_D"))
    room.server.publish(a_routing("app_D", "app_E"))
    room.server.publish(a_routing())
    assert [t.exists for t in (await caller.hear()).targets] == [True]
    assert [t.exists for t in (await caller.hear()).targets] == [False]


async def test_waits_until_every_caller_has_acknowledged(room: Room) -> None:
    first = await room.join("caller", "1", Subscribe(("app_D",)))
    second = await room.join("caller", "2", Subscribe(("app_D",)))
    room.server.publish(a_routing("app_D"))
    generation = (await first.hear()).generation
    await second.hear()
    done = asyncio.Event()
    room.server.after_acknowledged(LIMIT_S, done.set)
    first.say(CallerReport(generation, {"app_D": 3}))
    assert await room.news.next() == ("caller:1", "app_D", 3)
    assert not done.is_set()
    second.say(CallerReport(generation))
    await asyncio.wait_for(done.wait(), LIMIT_S)
    at_once = asyncio.Event()
    room.server.after_acknowledged(LIMIT_S, at_once.set)
    assert at_once.is_set()


async def test_a_caller_that_leaves_is_not_waited_for_and_its_line_is_empty(room: Room) -> None:
    caller = await room.join("caller", "1", Subscribe(("app_D",)), CallerReport(0, {"app_D": 2}))
    assert await room.news.next() == ("caller:1", "app_D", 2)
    room.server.publish(a_routing("app_D"))
    done = asyncio.Event()
    room.server.after_acknowledged(60.0, done.set)
    caller.leave()
    assert await room.news.next() == ("caller:1", "app_D", 0)
    await asyncio.wait_for(done.wait(), LIMIT_S)


async def test_a_caller_that_keeps_silent_is_waited_for_only_so_long(room: Room) -> None:
    await room.join("caller", "1", Subscribe(("app_D",)))
    room.server.publish(a_routing("app_D"))
    done = asyncio.Event()
    room.server.after_acknowledged(0.01, done.set)
    await asyncio.wait_for(done.wait(), LIMIT_S)


async def test_a_second_line_of_the_same_process_takes_over(room: Room) -> None:
    old = await room.join("proxy", "p")
    new = await room.join("proxy", "p")
    assert await old.hear() is None
    assert room.server.send("proxy", "p", ProxyReport("p", True))
    assert await new.hear() == ProxyReport("p", True)


async def test_refused_nameless_and_nonsense_peers_are_dropped(room: Room) -> None:
    refused = await room.join("proxy", "bad")
    assert await refused.hear() is None
    for first in (ProxyReport("p", True), Hello("king", "k", 1, 1)):
        peer = await room.line()
        peer.say(first)
        assert await peer.hear() is None
    assert not room.server.send("proxy", "bad", ProxyReport("bad", True))


async def test_a_death_is_told_after_the_last_words(tmp_path: Path) -> None:
    news = News()
    server = ControlServer(news, first_generation=1)
    path = str(tmp_path / "c.sock")
    await server.open(bind_unix(path))
    failed = ReplicaReport("r", "failed", error="KeyError: 'nope'")
    # opened, spoken into and closed before the server has had a turn, as by a process that fails at once
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(record(Hello("replica", "r", 1, 1)) + record(failed))
    server.after_heard_out("replica", "r", lambda: news.heard.put_nowait("exited"))
    assert (await news.next())[0] == "greeted"
    assert await news.next() == ("replica", "r", failed)
    assert await news.next() == "exited"
    server.close()


async def test_no_death_overtakes_last_words_however_busy_the_loop_is(tmp_path: Path) -> None:
    class Busy(News):
        def greeted(self, hello: Hello, pid: int) -> bool:
            # longer than any wait by the clock that would be too short
            block_for(0.02)
            return super().greeted(hello, pid)

    news = Busy()
    server = ControlServer(news, first_generation=1)
    path = str(tmp_path / "c.sock")
    await server.open(bind_unix(path))
    names = [f"r{number}" for number in range(24)]
    for name in names:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
            line.sendall(record(Hello("replica", name, 1, 1)) + record(ReplicaReport(name, "failed", error="why")))
    for name in names:
        server.after_heard_out("replica", name, functools.partial(news.heard.put_nowait, ("exited", name)))
    # of one that never said a word
    server.after_heard_out("replica", "silent", functools.partial(news.heard.put_nowait, ("exited", "silent")))
    order: dict[str, list[str]] = {}
    while sum(len(said) for said in order.values()) < 3 * len(names) + 1:
        what, name, *_ = await news.next()
        order.setdefault(name, []).append(what)
    assert order.pop("silent") == ["exited"]
    assert order == {name: ["greeted", "replica", "exited"] for name in names}
    server.close()


async def test_a_death_is_told_although_somebody_else_holds_the_line(tmp_path: Path) -> None:
    news = News()
    server = ControlServer(news, first_generation=1)
    path = str(tmp_path / "c.sock")
    await server.open(bind_unix(path))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(record(Hello("replica", "r", 1, 1)))
        server.after_heard_out("replica", "r", lambda: news.heard.put_nowait("exited"))
        assert (await news.next())[0] == "greeted"
        assert await news.next() == "exited"
    server.close()


async def test_without_its_path_a_death_is_told_after_a_while(tmp_path: Path) -> None:
    news = News()
    server = ControlServer(news, first_generation=1)
    path = tmp_path / "c.sock"
    await server.open(bind_unix(str(path)))
    path.unlink()
    server.after_heard_out("replica", "r", lambda: news.heard.put_nowait("exited"))
    assert await news.next() == "exited"
    server.close()


async def test_another_protocol_is_refused_with_the_reason(room: Room) -> None:
    caller = await room.line()
    caller.say(Hello("caller", "c", 1, 1, "", "99 9.9 abc"), Subscribe(("app_I",)))
    refused = await caller.hear()
    assert isinstance(refused, Refused)
    assert "9.9+abc (protocol 99)" in refused.reason
    assert "servd stop && servd start" in refused.reason
    assert await caller.hear() is None
    await room.join("caller", "c")
