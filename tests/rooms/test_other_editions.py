"""Who speaks another protocol, or nonsense, is of no use: it is ended, and what it was for fails with the reason."""

import asyncio
import contextlib
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servd.controller import fact_store
from servd.controller.fact_store import MIGRATIONS, FactStore
from servd.controller.fork_server_lines import ForkServerLines
from servd.controller.plan import events
from servd.controller.plan.goal import Goal
from servd.controller.process_news import ProcessNews
from servd.daemon.keepsake import Keepsake
from servd.exceptions import ProtocolError
from servd.ground.edition import edition_of, own_edition
from servd.ground.package import PROTOCOL
from servd.wire.build_messages import BuildResult
from servd.wire.caller_link import CallerLink
from servd.wire.codec import decode_message, encode_message, record
from servd.wire.messages import ForkServerHello, ProxyReport
from servd.wire.records import HELLO
from tests.core.build import starting_world
from tests.fakes import Room

ARCHIVES = sorted((Path(__file__).parents[1] / "system" / "kept_state").glob("*.tar.gz"))
FOREIGN = "99 9.9 abc"


class Supervisor:
    """Remembers what is killed."""

    def __init__(self) -> None:
        self.killed: list[tuple[str, str]] = []

    def kill(self, key: tuple[str, str]) -> bool:
        self.killed.append(key)
        return True


def news_of(world: Any) -> tuple[ProcessNews, list[Any], Supervisor]:
    emitted: list[Any] = []
    news = ProcessNews(asyncio.get_running_loop(), world.observed, emitted.append)
    supervisor = Supervisor()
    news.start(SimpleNamespace(), supervisor, SimpleNamespace())  # type: ignore[arg-type]
    return news, emitted, supervisor


@contextlib.asynccontextmanager
async def a_fork_server(path: str, said: bytes) -> AsyncIterator[None]:
    """Says this to everybody who connects."""
    ended: list[asyncio.Task[Any]] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ended.append(task)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_unix_server(speak, path):
        yield
        await asyncio.gather(*ended)


@pytest.mark.parametrize("said", [record(ForkServerHello("f", 1, None, (), FOREIGN)), b"\0\0\0\1\xc1"])
async def test_a_fork_server_that_cannot_be_understood_has_failed_to_build(tmp_path: Path, said: bytes) -> None:
    world = starting_world()
    [server] = world.observed.fork_servers.values()
    world.observed.change(server, result=None)
    news, emitted, supervisor = news_of(world)
    path = str(tmp_path / "f")

    async with a_fork_server(path, said):
        lines = ForkServerLines(asyncio.get_running_loop(), news)
        lines.connect(server.fork_server_id, path)
        async with asyncio.timeout(5):
            while not supervisor.killed:  # noqa: ASYNC110 - told by no event
                await asyncio.sleep(0.001)
        lines.close(server.fork_server_id)
    assert set(supervisor.killed) == {("fork_server", server.fork_server_id)}
    finished = emitted[0]
    assert isinstance(finished, events.BuildFinished)
    assert "the controller does not understand the build process" in finished.result.error


async def test_a_fork_server_of_this_protocol_is_welcome_whatever_its_edition(tmp_path: Path) -> None:
    world = starting_world()
    [server] = world.observed.fork_servers.values()
    news, emitted, supervisor = news_of(world)
    path = str(tmp_path / "f")
    hello = ForkServerHello(server.fork_server_id, 1, BuildResult("b"), (), f"{own_edition().protocol} 9.9 abc")

    async with a_fork_server(path, record(hello)):
        lines = ForkServerLines(asyncio.get_running_loop(), news)
        lines.connect(server.fork_server_id, path)
        async with asyncio.timeout(5):
            while not emitted:  # noqa: ASYNC110 - told by no event
                await asyncio.sleep(0.001)
        lines.close(server.fork_server_id)
    assert emitted == [events.BuildFinished(server.fork_server_id, BuildResult("b"))]
    assert not supervisor.killed


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def test_facts_of_before_protocols_are_read(tmp_path: Path, archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(archive) as kept:
        kept.extractall(tmp_path, filter="data")
    store = FactStore(str(tmp_path / "sockets"))
    facts = store.load()
    kinds = {type(fact).__name__ for fact in facts}
    assert kinds >= {"ReplicaFact", "ForkServerFact", "ProxyFact", "ApplicationFact", "DeploymentFact", "DataPlaneFact"}
    assert "fact_unreadable" not in caplog.text
    for fact in facts:
        assert encode_message(fact)
    store.close()
    again = FactStore(str(tmp_path / "sockets"))
    assert again.load() == facts
    again.close()


@pytest.mark.parametrize("is_kept", [True, False])
def test_facts_of_an_older_protocol_are_renewed_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    def store() -> FactStore:
        return FactStore(str(tmp_path), Keepsake(kept._fds) if is_kept else None)

    kept = Keepsake()
    old = store()
    old.load()
    old.save({("proxy", "old"): ProxyReport("old", True)})
    old.save_goal(Goal(3, running=True))
    old.close()
    monkeypatch.setattr(fact_store, "PROTOCOL", PROTOCOL + 1)
    monkeypatch.setitem(MIGRATIONS, PROTOCOL, lambda _, values: [f"{values[0]} renewed", *values[1:]])
    for _ in range(2):
        new = store()
        assert [fact.proxy_id for fact in new.load()] == ["old renewed"]
        assert new.goal() == (Goal(3, running=True) if is_kept else None)
        new.save({})
        new.close()
    in_file = FactStore(str(tmp_path))
    assert [fact.proxy_id for fact in in_file.load()] == ["old renewed"]
    in_file.close()
    kept.close()


def test_facts_without_a_mark_are_of_the_first_protocol() -> None:
    """A keepsake of before marks; and one of before marks reads today's, but for the mark."""
    kept = Keepsake()
    kept.save({("proxy", "p"): encode_message(ProxyReport("p", True))})
    store = FactStore("/nowhere", Keepsake(kept._fds))
    assert store.load() == [ProxyReport("p", True)]
    left = Keepsake(kept._fds).load()
    mark = left.pop(("form", ""))
    assert left == {("proxy", "p"): encode_message(ProxyReport("p", True))}
    with pytest.raises(ProtocolError):
        decode_message(mark)
    kept.close()


def say(monkeypatch: pytest.MonkeyPatch, *editions: str) -> None:
    """Let the first callers' greetings carry these, and the rest what this process is."""
    left = [*editions]
    monkeypatch.setattr(
        "servd.calls.replica_peer.own_edition", lambda: edition_of(left.pop(0)) if left else own_edition()
    )


async def test_a_caller_of_another_protocol_is_told_why_nobody_serves_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    say(monkeypatch, FOREIGN, FOREIGN)
    async with Room() as room:
        addresses = room.replica(), room.replica()
        room.route(*addresses)
        for method in ("GET", "POST"):
            answer = await room.get(method=method)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"`servd stop && servd start` ends this" in answer
        assert caplog.text.count("caller_refused") == len(addresses)
        assert "Traceback" not in caplog.text
        assert all(not server.ongoing for server in room.servers.values())


@pytest.mark.parametrize("first", [FOREIGN, "", "nonsense"])
async def test_requests_go_to_replicas_of_this_protocol(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    say(monkeypatch, first)
    async with Room() as room:
        room.route(room.replica(), room.replica())
        answers = await asyncio.gather(*(room.get(method=method) for method in ("GET", "POST") for _ in range(5)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


async def test_greetings_of_before_editions_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    send = CallerLink.send
    monkeypatch.setattr(CallerLink, "send", lambda link, said: send(link, said[:2] if said[0] == HELLO else said))
    async with Room() as room:
        room.route(room.replica())
        assert (await room.get()).startswith(b"HTTP/1.1 200 ")
