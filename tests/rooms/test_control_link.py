"""The line between a child and the controller, over a real socket."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from servd.wire import control_link
from servd.wire.codec import RecordReader, record
from servd.wire.control_link import ControlLink
from servd.wire.messages import Hello, ProxyGoal, ProxyReport, Refused


class Endpoint:
    """A controller's end: remembers what it gets, per connection."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        records = RecordReader()
        while data := await reader.read(65536):
            for message in records.feed(data):
                self.heard.put_nowait(message)
        writer.close()

    async def next(self) -> Any:
        return await asyncio.wait_for(self.heard.get(), 5)


def a_hello() -> Hello:
    return Hello("proxy", "p0", 1, 2, "secret")


async def test_greets_then_carries_records_both_ways(tmp_path: Path) -> None:
    endpoint = Endpoint(str(tmp_path / "c"))
    heard: asyncio.Queue[Any] = asyncio.Queue()
    link = ControlLink(endpoint.path, a_hello, heard.put_nowait)
    running = asyncio.create_task(link.run())
    assert not link.send(ProxyReport("p0", True))
    async with await endpoint.open():
        assert await endpoint.next() == a_hello()
        endpoint.writers[0].write(record(ProxyGoal("p0")) * 2)
        assert await asyncio.wait_for(heard.get(), 5) == ProxyGoal("p0")
        assert link.send(ProxyReport("p0", True))
        assert await endpoint.next() == ProxyReport("p0", True)
        running.cancel()
        await asyncio.wait([running])
    assert not link.is_connected


async def test_greets_again_after_the_controller_came_back(tmp_path: Path) -> None:
    endpoint = Endpoint(str(tmp_path / "c"))
    greeted: list[int] = []
    link = ControlLink(endpoint.path, a_hello, print, lambda: greeted.append(1))
    running = asyncio.create_task(link.run())
    async with await endpoint.open():
        await endpoint.next()
        endpoint.writers[0].close()
        assert await endpoint.next() == a_hello()
        assert len(greeted) == 2
        running.cancel()
        await asyncio.wait([running])


async def test_nonsense_drops_the_line_only(tmp_path: Path) -> None:
    endpoint = Endpoint(str(tmp_path / "c"))
    link = ControlLink(endpoint.path, a_hello, print)
    running = asyncio.create_task(link.run())
    async with await endpoint.open():
        await endpoint.next()
        endpoint.writers[0].write(b"\xff" * 64)
        assert await endpoint.next() == a_hello()
        running.cancel()
        await asyncio.wait([running])


async def test_a_failing_callback_does_not_stop_the_line(tmp_path: Path) -> None:
    endpoint = Endpoint(str(tmp_path / "c"))
    heard: asyncio.Queue[Any] = asyncio.Queue()

    def refuse_first(message: Any) -> None:
        heard.put_nowait(message)
        if heard.qsize() == 1:
            raise RuntimeError("not this one")

    link = ControlLink(endpoint.path, a_hello, refuse_first)
    running = asyncio.create_task(link.run())
    async with await endpoint.open():
        await endpoint.next()
        endpoint.writers[0].write(record(ProxyGoal("1")) + record(ProxyGoal("2")))
        assert await asyncio.wait_for(heard.get(), 5) == ProxyGoal("1")
        assert await asyncio.wait_for(heard.get(), 5) == ProxyGoal("2")
        running.cancel()
        await asyncio.wait([running])


async def test_who_is_refused_hears_why_and_looks_for_another_controller_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control_link, "_REFUSED_RETRY_S", 0.05)
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(str(tmp_path / "c"))
    heard: asyncio.Queue[Any] = asyncio.Queue()
    link = ControlLink(endpoint.path, a_hello, heard.put_nowait)
    running = asyncio.create_task(link.run())
    async with await endpoint.open():
        for number in range(2):
            await endpoint.next()
            endpoint.writers[number].write(record(Refused("another protocol")))
            endpoint.writers[number].close()
            refused_at = loop.time()
            assert await asyncio.wait_for(heard.get(), 5) == Refused("another protocol")
        await endpoint.next()
        # the clock of the loop has whole milliseconds
        assert loop.time() - refused_at >= 0.045
        endpoint.writers[2].write(record(ProxyGoal("p0")))
        assert await asyncio.wait_for(heard.get(), 5) == ProxyGoal("p0")
        running.cancel()
        await asyncio.wait([running])
    assert caplog.text.count("control_line_refused") == 1
