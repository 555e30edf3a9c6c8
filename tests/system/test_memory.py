"""What large bodies and slow clients cost a real proxy and a real replica."""

import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from servd.ground.clock import block_for
from tests.system.running_daemon import RunningDaemon, a_daemon, settings_in

pytestmark = [pytest.mark.slow, pytest.mark.long]

MIB = 1024 * 1024
SIZE = 1024 * MIB
PIECE = b"x" * (256 * 1024)
SLOW_CLIENTS = 40
STREAMS = """
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from servd import deployment, ingress

web = FastAPI()
PIECE = b"x" * (256 * 1024)

@deployment
class Source:
    async def numbers(self, count):
        for _ in range(count):
            yield PIECE

async def pieces(count):
    for _ in range(count):
        yield PIECE

@deployment(max_concurrent_queries=1000)
@ingress(web)
class Streams:
    def __init__(self, source):
        self.source = source

    @web.post("/up")
    async def up(self, request: Request):
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return size

    @web.get("/down/{count}")
    async def down(self, count: int):
        return StreamingResponse(pieces(count))

    @web.get("/relay/{count}")
    async def relay(self, count: int):
        return StreamingResponse(self.source.options(stream=True).numbers.remote(count))

    @web.websocket("/talk")
    async def talk(self, socket: WebSocket):
        await socket.accept()
        while True:
            await socket.send_bytes(PIECE)

app = Streams.bind(Source.bind())
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "code").mkdir()
    (folder / "code" / "streams.py").write_text(STREAMS)
    with a_daemon(settings_in(folder)) as made:
        made.deploy(folder / "code", "streams:app")
        yield made


class Watch:
    """The most memory that proxy and replicas had, each over what it had before. Use with `with`."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._processes = [psutil.Process(pid) for title in ("proxy", "replica") for pid in daemon.pids(title)]
        self._before = [process.memory_info().rss for process in self._processes]
        self.grown = [0] * len(self._processes)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            now = [process.memory_info().rss for process in self._processes]
            self.grown = [max(most, new - old) for most, new, old in zip(self.grown, now, self._before, strict=True)]


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def client(daemon: RunningDaemon, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    is_http2 = request.param == "HTTP/2"
    url = f"http://127.0.0.1:{daemon.settings.http_port}"
    with httpx.Client(http1=not is_http2, http2=is_http2, base_url=url, timeout=300) as made:
        # what is loaded once is no cost of a body
        made.post("/up", content=PIECE * 8)
        made.get("/down/20")
        made.get("/relay/20")
        yield made


@pytest.mark.parametrize("path", ["/down", "/relay"])
def test_a_download_of_1_gib(daemon: RunningDaemon, client: httpx.Client, path: str) -> None:
    with Watch(daemon) as watch, client.stream("GET", f"{path}/{SIZE // len(PIECE)}") as response:
        assert sum(len(data) for data in response.iter_raw()) == SIZE
    assert max(watch.grown) < 24 * MIB, watch.grown


def test_an_upload_of_1_gib(daemon: RunningDaemon, client: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(SIZE // len(PIECE)):
            yield PIECE

    with Watch(daemon) as watch:
        assert client.post("/up", content=body()).json() == SIZE
    assert max(watch.grown) < 24 * MIB, watch.grown


def plain(path: str) -> Callable[[], bytes]:
    """A request for a long stream."""
    return lambda: f"GET {path}/100000 HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def websocket() -> bytes:
    """A handshake."""
    return (
        b"GET /talk HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )


@pytest.mark.parametrize("ask", [plain("/down"), plain("/relay"), websocket], ids=["fast lane", "handle", "WebSocket"])
def test_readers_of_a_byte_a_second_cost_less_than_2_mib_each(daemon: RunningDaemon, ask: Callable[[], bytes]) -> None:
    with Watch(daemon) as watch:
        clients = []
        for _ in range(SLOW_CLIENTS):
            made = socket.create_connection(("127.0.0.1", daemon.settings.http_port or 0), timeout=10)
            made.sendall(ask())
            assert len(made.recv(1)) == 1
            clients.append(made)
            # one after the other: together their first pieces would cost more than they do later
            block_for(0.05)
        for _ in range(3):
            for made in clients:
                assert len(made.recv(1)) == 1
            block_for(1.0)
        grown = max(watch.grown)
        for made in clients:
            made.close()
    # each process that the stream goes through holds a part of it
    assert grown < SLOW_CLIENTS * 2 * MIB, watch.grown
    assert daemon.get("/down/1")[0] == 200
