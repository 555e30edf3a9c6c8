"""What clients see is the same in every lane: HTTP/1.1, HTTP/2 by prior knowledge, and curl's upgrade where curl is there."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets

from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, wait_until

LANES = ("HTTP/1.1", "HTTP/2")


async def answer(exchange: HttpExchange) -> None:
    """Does what the query says."""
    scope = exchange.scope
    what = scope["query_string"].partition(b"=")[0].decode()
    if what == "empty":
        exchange.finish(204, [], b"")
    elif what == "fail":
        raise RuntimeError("the handler's fault")
    elif what == "sleep":
        await asyncio.sleep(30)
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


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    """A room with one replica of two slots at /app."""
    async with Room(root_path="/root", hand_over=True, limits=Limits(body_bytes=4_000_000)) as made:
        made.route(made.replica(answer, limit=2), prefix="/app", max_queued_requests=0)
        yield made


@pytest.fixture(params=LANES)
async def client(room: Room, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A client of one lane; leaves nothing running."""
    is_http2 = request.param == "HTTP/2"
    url = f"http://127.0.0.1:{room.port}"
    async with httpx.AsyncClient(http1=not is_http2, http2=is_http2, base_url=url) as made:
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


async def send(client: httpx.AsyncClient, target: str, method: str = "GET", **options: Any) -> httpx.Response:
    request = at(target, method, **options)
    request.url = client.base_url
    request.headers["host"] = client.base_url.netloc.decode()
    async with asyncio.timeout(5):
        return await client.send(request)


async def test_connections_are_not_used_up(client: httpx.AsyncClient) -> None:
    for _ in range(1010):
        assert (await send(client, "/root/-/healthz")).status_code == 200


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
async def test_paths_are_decoded_once_and_never_rewritten(client: httpx.AsyncClient, target: str, path: str) -> None:
    got = await send(client, f"{target}?q=%2e")
    assert got.text == f"GET|{path}|/root/app|q=%2e|0"


@pytest.mark.parametrize("target", ["/", "/app", "/root/other/../app", "/root/application", "/rootapp", "/root//app"])
async def test_paths_without_a_route(client: httpx.AsyncClient, target: str) -> None:
    got = await send(client, target)
    assert (got.status_code, got.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert got.text.startswith(f"Path '{target}' not found.")


async def test_probes(client: httpx.AsyncClient) -> None:
    assert (await send(client, "/root/-/healthz", "POST")).text == "success"
    assert (await send(client, "/root/-/routes")).json() == {"/app": "app_Echo"}


async def test_usual_headers_and_request_ids(client: httpx.AsyncClient) -> None:
    got = await send(client, "/root/app", headers={"x-request-id": "mine-1"})
    assert (got.headers["x-request-id"], got.headers["server"]) == ("mine-1", "servd")
    assert got.headers["date"].endswith("GMT")
    bad = await send(client, "/root/app", headers={"x-request-id": "no spaces"})
    assert len(bad.headers["x-request-id"]) == 10
    unrouted = await send(client, "/nowhere", headers={"x-request-id": "mine-2"})
    assert unrouted.headers["x-request-id"] == "mine-2"


async def test_head_and_no_content(client: httpx.AsyncClient) -> None:
    head = await send(client, "/root/app", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    empty = await send(client, "/root/app?empty")
    assert (empty.status_code, empty.content) == (204, b"")
    assert "content-length" not in empty.headers


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 1024 * 1024 + 1, 4_000_000])
async def test_bodies(client: httpx.AsyncClient, size: int) -> None:
    assert (await send(client, "/root/app", "POST", content=b"x" * size)).text.endswith(f"|{size}")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 100_000):
            yield b"x" * min(100_000, size - start)

    assert (await send(client, "/root/app", "POST", content=pieces())).text.endswith(f"|{size}")


async def test_bodies_over_the_limit(client: httpx.AsyncClient) -> None:
    got = await send(client, "/root/app", "POST", content=b"x" * 4_000_001)
    assert (got.status_code, got.text) == (413, "the request's body is larger than 4000000 bytes")


async def test_failures(client: httpx.AsyncClient) -> None:
    failed = await send(client, "/root/app?fail")
    assert failed.status_code == 500
    assert "the handler's fault" in failed.text
    late = await send(client, "/root/app?sleep", headers={"x-request-timeout-seconds": "0.05"})
    assert (late.status_code, late.text) == (408, "The time limit of 0.05 s passed while in the handler.")


async def test_streams(client: httpx.AsyncClient) -> None:
    got = await send(client, "/root/app?stream")
    assert (got.text, got.headers["x-kind"]) == ("0,1,2,3,4,end", "stream")


async def test_full_lines_are_503(client: httpx.AsyncClient, room: Room) -> None:
    limit = {"x-request-timeout-seconds": "0.5"}
    running = [asyncio.create_task(send(client, "/root/app?sleep", headers=limit)) for _ in range(2)]
    await wait_until(lambda: ongoing(room) == 2)
    got = await send(client, "/root/app")
    assert (got.status_code, got.headers["retry-after"]) == (503, "1")
    assert [(await task).status_code for task in running] == [408, 408]


@pytest.mark.parametrize("target", ["/app/a%2Fb/../c", "/%61pp/a%2Fb/../c"])
async def test_websockets_see_the_same_paths(target: str) -> None:
    async def tell(exchange: HttpExchange) -> None:
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        await exchange.send(
            {"type": "websocket.send", "text": f"{exchange.scope['path']}|{exchange.scope['root_path']}"}
        )
        await exchange.receive()

    async with Room(hand_over=True) as room:
        room.route(room.replica(tell), prefix="/app")
        async with websockets.connect(f"ws://127.0.0.1:{room.port}{target}") as socket:
            assert await socket.recv() == "/app/a/b/../c|/app"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("option", ["--http1.0", "--http1.1", "--http2", "--http2-prior-knowledge"])
async def test_curl(option: str) -> None:
    async with Room(hand_over=True) as room:
        room.route(room.replica(answer), prefix="/app")
        url = f"http://127.0.0.1:{room.port}/app/x?q=1"
        # curl 7.88 cannot use such a connection twice, whoever serves
        urls = [url] if option == "--http2-prior-knowledge" else [url, url]
        for more, expected in (([], "GET|/app/x|/app|q=1|0"), (["-d", "abc"], "POST|/app/x|/app|q=1|3")):
            process = await asyncio.create_subprocess_exec(
                "curl", "-sS", option, "--max-time", "5", *more, *urls, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            assert output.decode() == expected * len(urls)
