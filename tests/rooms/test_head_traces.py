"""Requests of traces where they come in: their spans end however they end, and others pay as little as can be."""

import asyncio

import pytest

from servd.observability.head_traces import HeadTraces
from servd.proxy.limits import WHOLE_BODY_BYTES, Limits
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
        room.forwarder.traces = HeadTraces(room.forwarder.journal, recorder)
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
