"""What clients see is the same in every lane and for every client: HTTP/1.0, 1.1 and 2, with TLS and without, over bare
sockets, with httpx, curl, nghttp and h2load where they are there.
"""

import asyncio
import re
import shutil
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from servd.observability.access_log import AccessLog
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.proxy.forwarded_for import TrustedProxies
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until
from tests.rooms.http2_client import Http2Client
from tests.rooms.raw_client import RawClient

LANES = ("HTTP/1.1", "HTTP/2", "HTTP/1.1 TLS", "HTTP/2 TLS", "HTTP/1.1 raw", "HTTP/1.0 raw", "HTTP/1.1 raw TLS")
BODY_BYTES = 2_500_000
FORWARDED = {"x-forwarded-for": "6.6.6.6, 192.0.2.7", "x-forwarded-proto": "https", "x-forwarded-host": "a.b"}

Tls = tuple[ssl.SSLContext, ssl.SSLContext]
Client = httpx.AsyncClient | RawClient


async def answer(exchange: HttpExchange) -> None:
    """Does what the query says."""
    scope = exchange.scope
    what = scope["query_string"].partition(b"=")[0].decode()
    if what == "empty":
        exchange.finish(204, [], b"")
    elif what == "fail":
        raise RuntimeError("the handler's fault")
    elif what == "in-time":
        exchange.context.deadline = asyncio.get_running_loop().time() + 0.0005
        raise TimeoutError("the timer of a call came early")
    elif what == "sleep":
        await asyncio.Event().wait()
    elif what == "scope":
        told = [scope["scheme"], scope["http_version"], scope["client"][0], str(scope["server"][1])]
        if scope["query_string"] == b"scope=host":
            told = [*told[:3], *(value.decode() for name, value in scope["headers"] if name == b"host")]
        exchange.finish(200, [], "|".join(told).encode())
    elif what == "id":
        told = [value.decode() for name, value in scope["headers"] if name == b"x-request-id"]
        exchange.finish(200, [], "|".join([exchange.context.request_id, *told]).encode())
    elif what == "trace":
        trace = exchange.context.trace
        told = ["-", "-"] if trace is None else [trace.traceparent, trace.state]
        sent = [value.decode() for name, value in scope["headers"] if name in (b"traceparent", b"tracestate")]
        exchange.finish(200, [], "|".join([*told, *sent]).encode())
    elif what == "broken":
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"abc", "more_body": True})
        if scope["query_string"].endswith(b"late"):
            await asyncio.Event().wait()
        raise RuntimeError("too late")
    elif what == "stream":
        await exchange.send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"stream")]})
        for number in range(5):
            await exchange.send({"type": "http.response.body", "body": b"%d," % number, "more_body": True})
        await exchange.send({"type": "http.response.body", "body": b"end"})
    else:
        body = b""
        while (message := await exchange.receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        about = [scope["method"], scope["path"], scope["root_path"], scope["query_string"].decode(), str(len(body))]
        exchange.finish(200, [(b"content-type", b"text/plain")], "|".join(about).encode())


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    """What the client speaks."""
    return str(request.param)


@pytest.fixture
async def room(lane: str, request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    """A room with one replica of two slots at /app."""
    tls = request.getfixturevalue("tls")[0] if lane.endswith("TLS") else None
    async with Room(root_path="/root", hand_over=True, limits=Limits(body_bytes=BODY_BYTES), tls=tls) as made:
        made.route(made.replica(answer, limit=2), prefix="/app", max_queued_requests=0)
        yield made


@pytest.fixture
async def client(room: Room, lane: str, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client of one lane; leaves nothing running."""
    tls = request.getfixturevalue("tls")[1] if lane.endswith("TLS") else None
    version, _, kind = lane.removeprefix("HTTP/").partition(" ")
    if kind.startswith("raw"):
        yield RawClient(room, version, tls)
    else:
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{room.port}"
        verify = tls or ssl.create_default_context()
        async with httpx.AsyncClient(http1=version != "2", http2=version == "2", base_url=url, verify=verify) as made:
            yield made
    await wait_until(lambda: ongoing(room) == 0)


def ongoing(room: Room) -> int:
    """Requests that run."""
    return sum(server.ongoing for server in room.servers.values())


def at(target: str, method: str = "GET", **options: Any) -> httpx.Request:
    """A request whose target is sent as it is."""
    request = httpx.Request(method, "http://127.0.0.1/", **options)
    request.extensions["target"] = target.encode()
    return request


async def send(client: Client, target: str, method: str = "GET", **options: Any) -> httpx.Response:
    request = at(target, method, **options)
    request.url = client.base_url
    request.headers["host"] = client.base_url.netloc.decode()
    async with asyncio.timeout(5):
        return await client.send(request)


async def test_the_handler_sees_how_it_was_asked(client: Client, room: Room, lane: str) -> None:
    scheme = "https" if lane.endswith("TLS") else "http"
    version = lane.split()[0].removeprefix("HTTP/")
    assert (await send(client, "/root/app?scope")).text == f"{scheme}|{version}|127.0.0.1|{room.port}"


@pytest.mark.parametrize(
    ("trusted", "headers", "told"),
    [
        (None, FORWARDED, "https 192.0.2.7"),
        ("127.0.0.1", FORWARDED, "https 192.0.2.7 a.b"),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7;proto=https;host=a.b"}, "https 192.0.2.7 a.b"),
        ("10.0.0.0/8", {"x-forwarded-for": "192.0.2.7", "x-forwarded-host": "a.b"}, ""),
    ],
    ids=["by default", "trusted", "as Forwarded", "not trusted"],
)  # fmt: skip
async def test_what_a_proxy_in_front_says_counts_where_it_is_trusted(
    client: Client, room: Room, lane: str, trusted: str | None, headers: dict[str, str], told: str
) -> None:
    own, version = "https" if lane.endswith("TLS") else "http", lane.split()[0].removeprefix("HTTP/")
    usual = (await send(client, "/root/app?scope=host")).text
    if trusted is not None:
        room.forwarder.trusted = TrustedProxies(trusted)
    text = (await send(client, "/root/app?scope=host", headers=headers)).text
    if told:
        scheme, host, name = (*told.split(), usual.rpartition("|")[2])[:3]
        assert text == f"{scheme}|{version}|{host}|{name}"
    else:
        assert text == usual
    assert usual.startswith(f"{own}|{version}|127.0.0.1|")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/root/app", "/root/app"),
        ("/root/app/", "/root/app/"),
        ("/root/app/a%20b", "/root/app/a b"),
        ("/root/%61pp/x", "/root/app/x"),
        ("/root/app/%C3%A9", "/root/app/é"),
        ("/root/app/%ff", "/root/app/\N{REPLACEMENT CHARACTER}"),
        ("/root/app/a%2Fb", "/root/app/a/b"),
        ("/root/app%2Fb", "/root/app/b"),
        ("/root/app/%2561", "/root/app/%61"),
        ("/root/app/a/../b", "/root/app/a/../b"),
        ("/root/app/%2e%2e/b", "/root/app/../b"),
        ("/root/app//b", "/root/app//b"),
        ("/root/app/%zz", "/root/app/%zz"),
    ],
)
async def test_paths_are_decoded_once_and_never_rewritten(client: Client, target: str, path: str) -> None:
    got = await send(client, f"{target}?q=%2e")
    assert got.text == f"GET|{path}|/root/app|q=%2e|0"


async def test_access_lines_name_the_client_also_where_there_is_no_route(
    client: Client, room: Room, tmp_path: Path
) -> None:
    log = AccessLog(LogFile(tmp_path / "x.log"), "http_proxy", "here", ("http1.py", 7))
    journal = room.forwarder.journal = Journal(asyncio.get_running_loop(), log)
    for target in ("/root/app", "/root/none"):
        await send(client, target, headers=FORWARDED)
        await send(client, target)
    journal.settle()
    lines = (tmp_path / "x.log").read_text().splitlines()
    found = [re.search(r" (\d+) [\d.]+ms \d+B (\S+) ", line) for line in lines]
    told = [match and match.groups() for match in found]
    assert told == [(status, client) for status in ("200", "404") for client in ("192.0.2.7", "127.0.0.1")]


@pytest.mark.parametrize("target", ["/", "/app", "/root/other/../app", "/root/application", "/rootapp", "/root//app"])
async def test_paths_without_a_route(client: Client, target: str) -> None:
    got = await send(client, target)
    assert (got.status_code, got.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert got.text.startswith(f"Path '{target}' not found.")


async def test_probes(client: Client) -> None:
    assert (await send(client, "/root/-/healthz", "POST")).text == "success"
    assert (await send(client, "/root/-/routes")).json() == {"/app": "app_Echo"}
    assert (await send(client, "/root/-/routes?dialect=today")).json() == {"/app": "app"}
    assert (await send(client, "/root/%2D/health%7A")).text == "success"


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-00"


async def test_a_trace_goes_on_to_the_handler(client: Client) -> None:
    both = [("traceparent", TRACE), ("tracestate", "a=1"), ("tracestate", "b=2")]
    found = await send(client, "/root/app/x?trace", headers=both)
    assert found.text == f"{TRACE}|a=1,b=2|{TRACE}|a=1,b=2"
    assert found.headers["traceresponse"] == TRACE
    missed = await send(client, "/root/nowhere", headers=both[:1])
    assert (missed.status_code, missed.headers["traceresponse"]) == (404, TRACE)
    # what is no trace goes on as it came, and nobody makes anything of it
    for headers in (
        [("traceparent", TRACE[:-1])],
        [("traceparent", TRACE), ("traceparent", OTHER)],
        [("tracestate", "a=1")],
    ):
        found = await send(client, "/root/app/x?trace", headers=headers)
        assert found.text == "|".join(["-", "-", *(value for _, value in headers)])
        assert "traceresponse" not in found.headers
    found = await send(client, "/root/app/x?trace")
    assert (found.text, "traceresponse" in found.headers) == ("-|-", False)


async def test_usual_headers_and_request_ids(client: Client) -> None:
    got = await send(client, "/root/app", headers={"x-request-id": "mine-1"})
    assert (got.headers["x-request-id"], got.headers["server"]) == ("mine-1", "servd")
    assert got.headers["date"].endswith("GMT")
    bad = await send(client, "/root/app", headers={"x-request-id": "no spaces"})
    assert uuid.UUID(bad.headers["x-request-id"]).version == 4
    unrouted = await send(client, "/nowhere", headers={"x-request-id": "mine-2"})
    assert unrouted.headers["x-request-id"] == "mine-2"


@pytest.mark.parametrize("given", ["", "mine-3", "no spaces"])
async def test_the_handler_finds_the_id_of_its_request_among_the_headers(client: Client, given: str) -> None:
    got = await send(client, "/root/app?id", headers={"x-request-id": given} if given else {})
    own = got.headers["x-request-id"]
    assert got.text == f"{own}|{own}"
    assert (own == given) == (given == "mine-3")


async def test_head_and_no_content(client: Client) -> None:
    head = await send(client, "/root/app", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    empty = await send(client, "/root/app?empty")
    assert (empty.status_code, empty.content) == (204, b"")
    assert "content-length" not in empty.headers


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024 + 1, BODY_BYTES])
async def test_bodies(client: Client, size: int) -> None:
    assert (await send(client, "/root/app", "POST", content=b"x" * size)).text.endswith(f"|{size}")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 100_000):
            yield b"x" * min(100_000, size - start)

    assert (await send(client, "/root/app", "POST", content=pieces())).text.endswith(f"|{size}")


async def test_bodies_over_the_limit(client: Client) -> None:
    got = await send(client, "/root/app", "POST", content=b"x" * (BODY_BYTES + 1))
    assert (got.status_code, got.text) == (413, f"the request's body is larger than {BODY_BYTES} bytes")


async def test_failures(client: Client) -> None:
    failed = await send(client, "/root/app?fail")
    assert failed.status_code == 500
    assert failed.text.startswith("Internal Server Error (request id ")
    assert "the handler's fault" not in failed.text
    late = await send(client, "/root/app?sleep", headers={"x-request-timeout-seconds": "0.05"})
    assert (late.status_code, late.text) == (408, "The time limit of 0.05 s passed while in the handler.")


async def test_what_fails_as_its_time_is_up_is_late(client: Client) -> None:
    assert (await send(client, "/root/app?in-time")).status_code == 408


async def test_streams(client: Client) -> None:
    got = await send(client, "/root/app?stream")
    assert (got.text, got.headers["x-kind"]) == ("0,1,2,3,4,end", "stream")


@pytest.mark.parametrize("when", ["", "=late"])
async def test_a_response_that_is_broken_off_is_never_taken_for_a_whole_one(
    client: Client, lane: str, when: str
) -> None:
    limit = {"x-request-timeout-seconds": "0.1"} if when else {}
    if lane.startswith("HTTP/1.0"):
        # there, the end of the connection is all the end that there is
        assert (await send(client, f"/root/app?broken{when}", headers=limit)).text == "abc"
        return
    with pytest.raises(httpx.RemoteProtocolError):
        await send(client, f"/root/app?broken{when}", headers=limit)


async def test_route_changes_lose_no_request(client: Client, room: Room) -> None:
    (address,) = room.servers
    is_over = False

    async def ask() -> int:
        count = 0
        while not is_over:
            assert (await send(client, "/root/app/x")).text.startswith("GET|/root/app/x|")
            count += 1
        return count

    asking = asyncio.create_task(ask())
    for number in range(30):
        # another replica list, another root of the same path, another limit: each replaces every table
        room.route(address, prefix="/app" if number % 2 else "/", max_queued_requests=number)
        await asyncio.sleep(0.002)
    is_over = True
    assert await asking > 0


async def test_full_lines_are_503(client: Client, room: Room) -> None:
    limit = {"x-request-timeout-seconds": "0.5"}
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(send(client, "/root/app?sleep", headers=limit)) for _ in range(2)]
        await wait_until(lambda: ongoing(room) == 2)
        got = await send(client, "/root/app")
        assert (got.status_code, got.headers["retry-after"]) == (503, "1")
    assert [task.result().status_code for task in running] == [408, 408]


@pytest.mark.parametrize("target", ["/app/a%2Fb/../c", "/%61pp/a%2Fb/../c"])
@pytest.mark.parametrize("is_tls", [False, True])
async def test_websockets_see_the_same_paths(target: str, is_tls: bool, tls: Tls, is_handed: bool) -> None:
    async def tell(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        told = [exchange.scope[name] for name in ("path", "root_path", "scheme")]
        await exchange.send({"type": "websocket.send", "text": "|".join(told)})
        await exchange.receive()

    async with Room(hand_over=True, tls=tls[0] if is_tls else None, takes_websockets=is_handed) as room:
        room.route(room.replica(tell), prefix="/app")
        scheme, context = ("wss", tls[1]) if is_tls else ("ws", None)
        async with websockets.connect(f"{scheme}://127.0.0.1:{room.port}{target}", ssl=context) as socket:
            assert await socket.recv() == f"/app/a/b/../c|/app|{scheme}"


async def test_a_websocket_knows_its_client_through_a_proxy(is_handed: bool) -> None:
    async def tell(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        hosts = [value.decode() for name, value in exchange.scope["headers"] if name == b"host"]
        told = [exchange.scope["scheme"], exchange.scope["client"][0], *hosts]
        await exchange.send({"type": "websocket.send", "text": "|".join(told)})
        await exchange.receive()

    async with Room(hand_over=True, takes_websockets=is_handed) as room:
        room.route(room.replica(tell))
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", additional_headers=FORWARDED) as socket:
            assert await socket.recv() == f"wss|192.0.2.7|127.0.0.1:{room.port}"
        room.forwarder.trusted = TrustedProxies("127.0.0.1")
        async with websockets.connect(f"ws://127.0.0.1:{room.port}/", additional_headers=FORWARDED) as socket:
            assert await socket.recv() == "wss|192.0.2.7|a.b"


@pytest.mark.parametrize("protocols", [["h2"], ["h2", "http/1.1"], ["http/1.1"], []])
async def test_protocols_of_a_tls_connection(protocols: list[str], tls: Tls) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    async with Room(hand_over=True, tls=tls[0]) as room:
        room.route(room.replica())
        if protocols[:1] == ["h2"]:
            async with Http2Client(room.port, tls=context) as client:
                assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
                assert await client.get("/x") == (200, b"GET /x")
        else:
            answer = await room.raw(b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", tls=context)
            assert answer.endswith(b"GET /x")


async def run(*command: str) -> str:
    """What a program prints; it has to end well."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def needs(program: str) -> pytest.MarkDecorator:
    """Skips where a program is not installed."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@needs("curl")
@pytest.mark.parametrize("option", ["--http1.0", "--http1.1", "--http2", "--http2-prior-knowledge"])
@pytest.mark.parametrize("is_tls", [False, True])
async def test_curl(option: str, is_tls: bool, tls: Tls) -> None:
    async with Room(hand_over=True, tls=tls[0] if is_tls else None) as room:
        room.route(room.replica(answer), prefix="/app")
        url = f"{'https' if is_tls else 'http'}://127.0.0.1:{room.port}/app/x?q=1"
        # curl 7.88 cannot use such a connection twice, whoever serves
        urls = [url] if option == "--http2-prior-knowledge" else [url, url]
        for more, expected in (([], "GET|/app/x|/app|q=1|0"), (["-d", "abc"], "POST|/app/x|/app|q=1|3")):
            assert await run("curl", "-sSk", option, "--max-time", "5", *more, *urls) == expected * len(urls)


@needs("nghttp")
@pytest.mark.parametrize("kind", ["prior knowledge", "upgrade", "TLS"])
async def test_nghttp(kind: str, tls: Tls) -> None:
    is_tls = kind == "TLS"
    async with Room(hand_over=True, tls=tls[0] if is_tls else None) as room:
        room.route(room.replica(answer), prefix="/app")
        url = f"{'https' if is_tls else 'http'}://127.0.0.1:{room.port}/app/x?q=1"
        upgrade = ["-u"] if kind == "upgrade" else []
        printed = await run("nghttp", "--no-verify-peer", *upgrade, url)
        assert "GET|/app/x|/app|q=1|0" in printed


@needs("h2load")
@pytest.mark.parametrize("kind", ["HTTP/2", "HTTP/1.1", "HTTP/2 TLS", "HTTP/1.1 TLS"])
async def test_h2load(kind: str, tls: Tls) -> None:
    is_tls = kind.endswith("TLS")
    async with Room(hand_over=True, tls=tls[0] if is_tls else None) as room:
        room.route(room.replica(answer, limit=3), prefix="/app")
        url = f"{'https' if is_tls else 'http'}://127.0.0.1:{room.port}/app/x"
        version = ["--h1"] if kind.startswith("HTTP/1.1") else []
        printed = await run("h2load", "-n", "400", "-c", "8", "-m", "5", *version, url)
        assert "400 succeeded, 0 failed, 0 errored, 0 timeout" in printed
        await wait_until(lambda: ongoing(room) == 0)
