import asyncio
import re
import uuid
from pathlib import Path

import pytest

from servd.observability.access_log import AccessLog
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.proxy.limits import WHOLE_BODY_BYTES, Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until


async def echo(exchange: HttpExchange) -> None:
    body = b""
    while True:
        message = await exchange.receive()
        body += message["body"]
        if not message["more_body"]:
            break
    exchange.finish(200, [(b"content-type", b"text/plain")], body)


async def show_scope(exchange: HttpExchange) -> None:
    scope = exchange.scope
    shown = [scope["path"], scope["root_path"], scope["query_string"].decode(), scope["http_version"]]
    exchange.finish(200, [], "|".join(shown).encode())


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


async def test_get_carries_the_usual_headers() -> None:
    async with Room() as room:
        room.route(room.replica())
        status, headers, body = split(await room.get("/abc?x=1"))
        assert (status, body) == (200, b"GET /abc")
        assert headers["server"] == "servd"
        assert headers["content-length"] == "8"
        assert headers["connection"] == "close"
        assert str(uuid.UUID(headers["x-request-id"])) == headers["x-request-id"]
        assert headers["date"].endswith("GMT")


async def test_request_id_of_the_client_is_kept_if_it_is_decent() -> None:
    async with Room() as room:
        room.route(room.replica())
        assert split(await room.get("/", "X-Request-ID: my-id.1_2"))[1]["x-request-id"] == "my-id.1_2"
        made = [split(await room.get("/", "X-Request-ID: a b"))[1]["x-request-id"] for _ in range(3)]
        assert [uuid.UUID(one).version for one in made] == [4, 4, 4]
        assert len(set(made)) == 3


async def test_probes_and_404() -> None:
    async with Room() as room:
        for path, code in (
            ("healthz", 200),
            ("routes", 200),
            ("healthz?dialect=today", 503),
            ("routes?dialect=today", 503),
        ):
            assert split(await room.get(f"/-/{path}"))[0] == code
        room.route(room.replica(), prefix="/a")
        assert split(await room.get("/-/healthz"))[2] == b"success"
        assert split(await room.get("/-/healthz?dialect=today"))[::2] == (200, b"success")
        status, headers, body = split(await room.get("/-/routes", method="POST"))
        assert (status, headers["content-type"], body) == (200, "application/json", b'{"/a":"app_Echo"}')
        assert split(await room.get("/-/routes?dialect=today"))[2] == b'{"/a":"app"}'
        status, headers, body = split(await room.get("/ab"))
        assert (status, headers["content-type"]) == (404, "text/plain; charset=utf-8")
        assert body.startswith(b"Path '/ab' not found.")
        assert b"/-/routes" in body


async def test_probes_win_over_an_application_at_the_root() -> None:
    async with Room() as room:
        room.route(room.replica())
        assert split(await room.get("/-/healthz"))[2] == b"success"


async def test_paths_as_the_handler_sees_them() -> None:
    async with Room(root_path="/root") as room:
        room.route(room.replica(show_scope), prefix="/fruit")
        assert split(await room.get("/root/fruit/x?y=1"))[2] == b"/root/fruit/x|/root/fruit|y=1|1.1"
        assert split(await room.get("/fruit/x"))[0] == 404


async def test_head_has_no_body() -> None:
    async with Room() as room:
        room.route(room.replica())
        status, headers, body = split(await room.get("/", method="HEAD"))
        assert (status, headers["content-length"], body) == (200, "6", b"")


async def test_no_content_has_neither_body_nor_length() -> None:
    async def empty(exchange: HttpExchange) -> None:
        exchange.finish(204, [], b"")

    async with Room() as room:
        room.route(room.replica(empty))
        status, headers, body = split(await room.get("/"))
        assert (status, body) == (204, b"")
        assert "content-length" not in headers


async def test_http10() -> None:
    async with Room() as room:
        room.route(room.replica(show_scope))
        status, headers, body = split(await room.raw(b"GET / HTTP/1.0\r\n\r\n"))
        assert (status, body, headers["connection"]) == (200, b"/|||1.0", "close")
        data = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        assert b"connection: keep-alive" in await room.raw(data, until=b"|||1.0")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(exchange: HttpExchange) -> None:
        if exchange.scope["path"] == "/0":
            await asyncio.sleep(0.02)
        exchange.finish(200, [], exchange.scope["path"].encode())

    async with Room() as room:
        room.route(room.replica(slow_first))
        data = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(50))
        answer = await room.raw(data + b"GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert re.findall(rb"\r\n\r\n(/[a-z0-9]+)", answer) == [b"/%d" % n for n in range(50)] + [b"/end"]


async def test_a_head_in_pieces() -> None:
    async with Room() as room:
        room.route(room.replica())
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        data = b"POST /abcdefgh HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"
        for start in range(0, len(data), 7):
            writer.write(data[start : start + 7])
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(b"POST /abcdefgh")
        writer.close()


@pytest.mark.parametrize("size", [0, 1, 70_000, 1024 * 1024, 1024 * 1024 + 1, 5_000_000])
async def test_bodies_of_all_sizes_arrive(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with Room() as room:
        room.route(room.replica(echo))
        status, headers, got = split(await room.get("/", method="POST", body=body))
        assert (status, len(got), headers["content-length"]) == (200, size, str(size))
        assert got == body


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("beyond", [1, 1000, 200_000, WHOLE_BODY_BYTES, WHOLE_BODY_BYTES + 1000])
async def test_the_connection_goes_on_behind_a_large_body_that_nobody_read(beyond: int, is_chunked: bool) -> None:
    size = WHOLE_BODY_BYTES + beyond
    body = b"y" * size
    if is_chunked:
        whole = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    else:
        whole = b"content-length: %d\r\n\r\n%b" % (size, body)
    all_there = asyncio.Event()

    async def early(exchange: HttpExchange) -> None:
        await all_there.wait()
        exchange.finish(200, [], exchange.scope["path"].encode())

    async with Room() as room:
        room.route(room.replica(early))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"POST /first HTTP/1.1\r\nhost: x\r\n" + whole)
        await writer.drain()
        (connection,) = room.listener.connections
        await wait_until(lambda: connection._stream is not None and connection._stream.is_complete)  # type: ignore[attr-defined]
        all_there.set()
        head, _, rest = (await reader.readuntil(b"/first")).partition(b"\r\n\r\n")
        assert (rest, b"connection: close" in head) == (b"/first", False)
        writer.write(b"GET /second HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).endswith(b"/second")
        writer.close()


async def test_chunked_request_body() -> None:
    async with Room() as room:
        room.route(room.replica(echo))
        head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        assert split(await room.raw(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))[2] == b"abcde"
        large = b"".join(b"%x\r\n%b\r\n" % (65536, b"y" * 65536) for _ in range(40)) + b"0\r\n\r\n"
        assert len(split(await room.raw(head + large))[2]) == 40 * 65536


async def test_100_continue() -> None:
    async with Room() as room:
        room.route(room.replica(echo))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await reader.read()).endswith(b"ok")
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length : 3\r\n\r\nabc",
        b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
    ],
)
async def test_ambiguous_or_malformed_requests_are_refused_and_the_connection_closed(data: bytes) -> None:
    async with Room() as room:
        room.route(room.replica())
        answer = await room.raw(data)
        status, headers, _ = split(answer)
        assert (status, headers["connection"]) == (400, "close")
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_bad_request_behind_a_good_one_does_not_harm_it() -> None:
    async with Room() as room:
        room.route(room.replica())
        answer = await room.raw(b"GET /good HTTP/1.1\r\nhost: x\r\n\r\nNONSENSE\r\n\r\n")
        assert answer.index(b"GET /good") < answer.index(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\nx-request-timeout-seconds: 0.02\r\ncontent-length: 9\r\n\r\nx", 408),
    ],
    ids=["malformed", "slow body"],
)
async def test_a_refused_request_is_not_of_the_client_before(tmp_path: Path, bad: bytes, status: int) -> None:
    async with Room() as room:
        room.route(room.replica())
        log = AccessLog(LogFile(tmp_path / "x.log"), "http_proxy", "here", ("http1.py", 7))
        journal = room.forwarder.journal = Journal(asyncio.get_running_loop(), log)
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        async with asyncio.timeout(5):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.7\r\n\r\n")
            await reader.readuntil(b"GET /")
            writer.write(bad)
            assert (await reader.readline()).startswith(b"HTTP/1.1 %d " % status)
        writer.close()
        journal.settle()
    lines = (tmp_path / "x.log").read_text().splitlines()
    found = [re.search(r" (\d+) [\d.]+ms \d+B (\S+) ", line) for line in lines]
    assert [match and match.groups() for match in found] == [("200", "192.0.2.7"), (str(status), "127.0.0.1")]


async def test_limits_of_head_and_body() -> None:
    async with Room(limits=Limits(head_bytes=2000, body_bytes=1000)) as room:
        room.route(room.replica(echo))
        assert split(await room.get("/", "x: " + "y" * 3000))[0] == 431
        assert split(await room.raw(b"GET / HTTP/1.1\r\nx: " + b"y" * 3000))[0] == 431
        assert split(await room.get("/", method="POST", body=b"x" * 1001))[0] == 413
        assert split(await room.get("/", method="POST", body=b"x" * 1000))[0] == 200
        chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert split(await room.raw(chunked + b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"))[0] == 413


async def test_too_slow_heads_and_idle_connections_are_ended() -> None:
    async with Room(limits=Limits(head_s=2, idle_s=4)) as room:
        room.route(room.replica())
        slow = asyncio.create_task(room.raw(b"GET / HTTP/1.1\r\nx"))
        idle = asyncio.create_task(room.raw(b""))
        await wait_until(lambda: len(room.listener.connections) == 2)
        await wait_until(lambda: any(c._head_tick for c in room.listener.connections))
        for _ in range(6):
            room.listener.turn()
        assert split(await slow)[0] == 408
        assert await idle == b""


async def test_an_unknown_upgrade_is_ignored() -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica())
        data = b"GET /one HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n"
        data += b"GET /two HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = await room.raw(data)
        assert answer.index(b"GET /one") < answer.index(b"GET /two")


async def test_draining_closes_after_the_answer_and_idle_ones_after_a_grace() -> None:
    async with Room() as room:
        room.route(room.replica())
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        await wait_until(lambda: len(room.listener.connections) == 1)
        room.listener.drain()
        room.listener.turn()
        assert len(room.listener.connections) == 1
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"connection: close" in await reader.read()
        writer.close()
        await wait_until(lambda: not room.listener.connections)
        idle = asyncio.create_task(room.raw(b""))
        await wait_until(lambda: len(room.listener.connections) == 1)
        for _ in range(3):
            room.listener.turn()
        assert await idle == b""


async def test_connections_are_bounded() -> None:
    async with Room(limits=Limits(connections=1)) as room:
        room.route(room.replica())
        first = asyncio.create_task(room.raw(b""))
        await wait_until(lambda: len(room.listener.connections) == 1)
        status, headers, _ = split(await room.raw(b""))
        assert (status, headers["retry-after"]) == (503, "1")
        first.cancel()


@pytest.mark.parametrize(
    ("why", "status"), [("no route", 404), ("unavailable", 503), ("line full", 503), ("probe", 200), ("", 100)]
)
@pytest.mark.parametrize("is_behind_another", [False, True], ids=["first", "behind another"])
async def test_a_body_that_is_not_wanted_is_not_asked_for(why: str, status: int, is_behind_another: bool) -> None:
    go = asyncio.Event()

    async def waits(exchange: HttpExchange) -> None:
        if exchange.scope["path"] == "/hold":
            await go.wait()
        exchange.finish(200, (), b"ok")

    async with Room() as room:
        if why == "unavailable":
            room.route(unavailable="it failed to start")
        elif why == "line full":
            room.route(max_queued_requests=0)
        else:
            room.route(room.replica(waits), prefix="/app" if why in ("no route", "probe") else "/")
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        path = b"/-/healthz" if why == "probe" else b"/x"
        if is_behind_another:
            writer.write(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n" % path)
        if is_behind_another:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(len(b"success"))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        if status == 100:
            writer.write(b"ab")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        else:
            assert b"connection: close\r\n" in head
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
