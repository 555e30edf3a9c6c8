"""Requests of traces where they come in: their spans end however they end, and others pay as little as can be."""

import asyncio
from collections.abc import Callable

import pytest

from servd.observability.head_traces import HeadTraces
from servd.observability.spans import NOTHING_RECORDED
from servd.proxy.limits import WHOLE_BODY_BYTES, Limits
from servd.proxy.main import SamplingConnection
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.recorded_spans import Recorder

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ntraceparent: 00-%b-b7ad6b7169203331-01\r\n" % TRACE.encode()


async def swallow(exchange: HttpExchange) -> None:
    if exchange.scope["path"] == "/begins":
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"a", "more_body": True})
    while (await exchange.receive())["type"] == "http.request":
        pass


@pytest.mark.parametrize(("path", "status"), [(b"/", 413), (b"/begins", 200)])
async def test_an_upload_that_is_refused_midway_ends_its_span(path: bytes, status: int) -> None:
    async with Room(limits=Limits(body_bytes=2 * WHOLE_BODY_BYTES)) as room:
        room.route(room.replica(swallow))
        recorder = Recorder()
        room.forwarder.traces = HeadTraces(recorder)
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(HEAD.replace(b" / ", b" %b " % path) + b"transfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%b\r\n" % (WHOLE_BODY_BYTES // 2 + 1, bytes(WHOLE_BODY_BYTES // 2 + 1))
        writer.write(chunk * 2)
        await wait_until(lambda: bool(recorder.spans))
        async with asyncio.timeout(5):
            begun = await reader.readuntil(b"\r\n\r\n") if path == b"/begins" else b""
            writer.write(chunk * 2)
            begun += await reader.read()
        writer.close()
        assert begun.startswith(b"HTTP/1.1 %d" % status)
        (span,) = recorder.spans
        assert "ended" in span.told
        assert (span.told["http.response.status_code"], "failed" in span.told) == (status, False)


class Stopwatch:
    """The clock of a connection; says how often it is read."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self._now()


async def test_a_connection_forgets_a_trace_that_is_over() -> None:
    async with Room() as room:
        room.route(room.replica())
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)

        async def ask(head: bytes) -> int:
            (connection,) = room.listener.connections
            stopwatch = connection._now = Stopwatch(room.forwarder.journal.now)
            writer.write(head)
            async with asyncio.timeout(5):
                await reader.readuntil(b"POST /")
            return stopwatch.reads

        await wait_until(lambda: bool(room.listener.connections))
        plain = HEAD.partition(b"traceparent")[0] + b"\r\n"
        before = await ask(plain)
        traced = await ask(HEAD + b"\r\n")
        await ask(plain)
        assert traced > before == await ask(plain)
        writer.close()


async def test_requests_that_begin_a_trace_are_counted_down_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.observability.spans.Sampling.gap", lambda _: 3)
    async with Room() as room:
        room.route(room.replica())
        recorder = Recorder(0.4)
        traces = room.forwarder.traces = HeadTraces(recorder)
        connection = SamplingConnection(room.listener)
        server = await room.forwarder.loop.create_server(lambda: connection, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        plain = HEAD.partition(b"traceparent")[0] + b"\r\n"
        heads = []
        for number in range(9):
            if number == 6:
                recorder.sampling = NOTHING_RECORDED
            writer.write(plain)
            async with asyncio.timeout(5):
                heads.append(await reader.readuntil(b"POST /"))
        writer.close()
        server.close()
        assert [b"traceresponse" in head for head in heads] == [*(False, False, True) * 2, False, False, False]
        assert (len(recorder.spans), traces.can_begin) == (2, False)
        journal = room.forwarder.journal
        journal.settle()
        assert not journal.is_on, "nobody wants to know of the others"
        assert all("ended" in span.told for span in recorder.spans)
