"""Clients that ask for much and take nothing, or send what costs most: what the proxy holds for one connection has a bound."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from servd.ground.clock import SystemClock, block_for
from tests.faults import hostile_grpc
from tests.faults.hostile_client import Http2Attacker, RawClient, WebSocketAttacker, frame
from tests.faults.outcome import Outcome
from tests.ports import free_port
from tests.system.running_daemon import RunningDaemon, a_daemon, settings_in

MOST_MIB = 4.0
"""What the proxy may hold for one connection, and of a WebSocket the replica that has it."""
MORE_MIB = {
    "grpc: pings": 6.0,
    "websocket: message without end": 20.0,
    "websocket: compressed": 20.0,
    "websocket: many in one http2": 20.0,
}
"""Where a library holds what servd cannot bound: answers to pings, in gRPC; mostly 2 to 3, once 4.6. Where the replica has one
message, which may have 16 MiB; and where it has what waits of 100 WebSockets."""
CONNECTIONS = 16
FEW_CONNECTIONS = 5
"""What the proxy needs once, however many there are, is shared among them."""
_STILL_S = 0.6
_WATCHED_S = 20.0
_KIB = 1024
_MIB = 1024 * _KIB
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)

APPLICATION = """
import asyncio

from servd import deployment, ingress

LARGE = b"x" * 2**20


async def serve(scope, receive, send):
    if scope["type"] == "websocket":
        await chat(scope["path"], receive, send)
        return
    path = scope["path"]
    if path == "/deaf":
        await asyncio.Event().wait()
    if path in ("/late", "/echo"):
        body = b""
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            body += message["body"]
        if path == "/late":
            await asyncio.Event().wait()
    size = {"/whole": 2**20 - 1, "/small": 40_000, "/pieces": 0}.get(path, 2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if path == "/pieces":
        for _ in range(1000):
            await send({"type": "http.response.body", "body": LARGE[:65536], "more_body": True})
    await send({"type": "http.response.body", "body": LARGE[:size]})


async def chat(path, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    if path == "/deaf":
        await asyncio.Event().wait()
    while path == "/talk":
        await send({"type": "websocket.send", "text": "x"})
    while path == "/shout":
        await send({"type": "websocket.send", "bytes": LARGE})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": "y"})


@deployment(max_concurrent_queries=10_000)
@ingress(serve)
class Large:
    pass


app = Large.bind()
"""


def _get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *lines, "", ""]).encode()


_POST = b"POST %b HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n"
_TOKENS = b"GET / HTTP/1.1\r\nhost:x\r\n" + b"a:\r\n" * 16_000 + b"\r\n"


def _pipelined(request: bytes, count: int, port: int) -> RawClient:
    client = RawClient(port)
    client.push(request * count)
    return client


def _body(head: bytes, piece: bytes, count: int, port: int) -> RawClient:
    client = RawClient(port)
    client.push(head)
    for _ in range(count):
        if not client.push(piece):
            break
    return client


def _endless_head(port: int) -> RawClient:
    return _pipelined(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 100_000, 1, port)


def _answers(path: str, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    for _ in range(100):
        client.ask(path)
    client.push_all()
    return client


def _uploads(path: str, size: int, is_whole: bool, piece: int, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    streams = [client.ask(path, "POST", end=False) for _ in range(100)]
    client.upload(dict.fromkeys(streams, size), end=is_whole, piece=piece)
    return client


def _heads(port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    for number in range(100):
        client.ask("/deaf", "GET", pairs=[(f"x-{number}-{count}", "y") for count in range(800)])
    client.push_all()
    return client


def _frames(data: bytes, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    client.ask("/")
    client.push_all(data)
    return client


def _taken_back(port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    for _ in range(900):
        client.take_back(client.ask("/deaf"))
    client.push_all()
    return client


def _chat(path: str, data: bytes, port: int, extensions: str = "") -> WebSocketAttacker:
    client = WebSocketAttacker(port, path, extensions)
    client.push(data)
    return client


def _small_windows(port: int) -> Http2Attacker:
    client = Http2Attacker(port, window=1)
    for _ in range(100):
        client.ask("/whole")
    client.push_all()
    return client


def _chats(path: str, port: int) -> Http2Attacker:
    client = Http2Attacker(port)
    streams = [client.ask(path, "CONNECT", pairs=[("sec-websocket-version", "13")], end=False) for _ in range(100)]
    message = WebSocketAttacker.frame(1, b"x")
    client.upload(dict.fromkeys(streams, 200_000), end=False, piece=16_000, content=message)
    return client


_MESSAGE = WebSocketAttacker.frame(1, b"x")
_PART = WebSocketAttacker.frame(1, b"x", is_last=False) + WebSocketAttacker.frame(0, b"x", is_last=False) * 20_000
_LARGE_PART = WebSocketAttacker.frame(2, b"x", is_last=False) + 14 * WebSocketAttacker.frame(
    0, b"x" * _MIB, is_last=False
)
KINDS: dict[str, Callable[[int], RawClient]] = {
    "whole answers unread": partial(_pipelined, _get("/whole"), 100),
    "streams unread": partial(_pipelined, _get("/pieces"), 100),
    "small answers unread": partial(_pipelined, _get("/small"), 5000),
    "refusals unread": partial(_pipelined, _get("/none"), 50_000),
    "heads of tokens": partial(_pipelined, _TOKENS, 100),
    "head without end": _endless_head,
    "body that nobody takes": partial(_body, _POST % (b"/deaf", b"content-length: 90000000"), b"x" * _MIB, 90),
    "whole bodies": partial(_pipelined, _POST % (b"/late", b"content-length: 1048576") + b"x" * _MIB, 50),
    "chunks of a byte": partial(_body, _POST % (b"/deaf", b"transfer-encoding: chunked"), b"1\r\nx\r\n" * 20_000, 200),
    "http2: whole answers unread": partial(_answers, "/whole"),
    "http2: streams unread": partial(_answers, "/pieces"),
    "http2: windows of a byte": _small_windows,
    "http2: bodies that nobody takes": partial(_uploads, "/deaf", 4 * _MIB, False, 16_000),
    "http2: whole bodies": partial(_uploads, "/late", _MIB - 1, True, 16_000),
    "http2: bodies without end": partial(_uploads, "/late", _MIB - 1, False, 16_000),
    "http2: frames of a byte": partial(_uploads, "/deaf", 20_000, False, 1),
    "http2: heads": _heads,
    "http2: pings": partial(_frames, frame(6, 0, 0, b"12345678") * 200_000),
    "http2: settings": partial(_frames, frame(4, 0, 0) * 200_000),
    "http2: taken back": _taken_back,
    "websocket: small messages unread": partial(_chat, "/talk", b""),
    "websocket: large messages unread": partial(_chat, "/shout", b""),
    "websocket: messages that nobody takes": partial(_chat, "/deaf", _MESSAGE * 300_000),
    "websocket: answers to each unread": partial(_chat, "/echo", _MESSAGE * 300_000),
    "websocket: parts of a byte": partial(_chat, "/echo", _PART * 40),
    "websocket: message without end": partial(
        _chat,
        "/echo",
        WebSocketAttacker.frame(2, b"x" * _MIB, is_last=False)
        + WebSocketAttacker.frame(0, b"x" * _MIB, is_last=False) * 14,
    ),
    "websocket: pings": partial(_chat, "/echo", WebSocketAttacker.frame(9, b"x" * 100) * 100_000),
    "websocket: compressed": lambda port: _chat("/deaf", WebSocketAttacker.bomb() * 30, port, "permessage-deflate"),
    "websocket: many in one http2": partial(_chats, "/deaf"),
    **hostile_grpc.KINDS,
}
"""One connection of each kind: opened, and left alone once it takes nothing more."""

WORST = ("http2: whole answers unread", "http2: bodies that nobody takes")
"""What is tried in few seconds."""


@contextmanager
def a_victim(directory: Path, kind: str = "") -> Iterator["Victim"]:
    """A daemon with one proxy and the application, both warm; with a port of gRPC for kinds that need it."""
    is_grpc = kind in hostile_grpc.KINDS
    (directory / "large.py").write_text(hostile_grpc.APPLICATION if is_grpc else APPLICATION)
    options = {"grpc_port": free_port(), "grpc_servicers": (hostile_grpc.SERVICER,)} if is_grpc else {}
    with a_daemon(settings_in(directory, proxies=1, **options)) as daemon:
        daemon.deploy(directory, "large:app")
        victim = GrpcVictim(daemon) if is_grpc else Victim(daemon)
        victim.warm_up()
        yield victim


class Victim:
    """The proxy that is attacked."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self.daemon = daemon
        assert daemon.settings.http_port is not None
        self.port = daemon.settings.http_port
        (self._pid,) = daemon.pids("proxy")

    def warm_up(self) -> None:
        """Let it load what it needs for each lane."""
        for _ in range(2):
            assert self.daemon.get("/small")[0] == 200
            with Http2Attacker(self.port) as http2:
                http2.ask("/")
                http2.push_all()
                http2.read_some()
            with WebSocketAttacker(self.port, "/echo") as websocket:
                websocket.push(_MESSAGE)
                websocket.read_some()

    def resident_mib(self, kind: str) -> float:
        """Memory of the proxy, and of the replica where that has the connections."""
        watched = [self._pid, *(self.daemon.pids("replica") if kind.startswith("websocket: ") else ())]
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in watched]
        return sum(int(found[1]) for text in texts if (found := _RESIDENT.search(text))) / _KIB

    def attack(self, kind: str, count: int = CONNECTIONS) -> float:
        """MiB that one connection of a kind costs, at the worst moment."""
        before = worst = self.resident_mib(kind)
        clients = []
        try:
            for _ in range(count):
                clients.append(KINDS[kind](self.port))
                worst = max(worst, self.resident_mib(kind))
            clock = SystemClock()
            began = grown = clock.now()
            while clock.now() - grown < _STILL_S and clock.now() - began < _WATCHED_S:
                block_for(0.02)
                now = self.resident_mib(kind)
                if now > worst + 0.1:
                    grown = clock.now()
                worst = max(worst, now)
        finally:
            for client in clients:
                client.close()
        return (worst - before) / count

    def is_well(self) -> bool:
        """It is the same process, and serves others."""
        return self.daemon.pids("proxy") == [self._pid] and self.daemon.get()[0] == 200


class GrpcVictim(Victim):
    """The same, by its port of gRPC."""

    def __init__(self, daemon: RunningDaemon) -> None:
        super().__init__(daemon)
        assert daemon.settings.grpc_port is not None
        self.port = daemon.settings.grpc_port

    def warm_up(self) -> None:
        for _ in range(2):
            assert self.is_well()

    def is_well(self) -> bool:
        return self.daemon.pids("proxy") == [self._pid] and hostile_grpc.is_answered(self.port)


def play(kind: str, directory: Path, connections: int) -> Outcome:
    """So many connections of a kind at once."""
    with a_victim(directory, kind) as victim:
        outcome = Outcome(connections)
        _attack(victim, kind, connections, outcome)
    return outcome


def play_some(directory: Path, _: int) -> Outcome:
    """A few connections of each of the worst kinds, one kind after the other."""
    outcome = Outcome(len(WORST))
    with a_victim(directory) as victim:
        for kind in WORST:
            _attack(victim, kind, FEW_CONNECTIONS, outcome)
    return outcome


def _attack(victim: Victim, kind: str, connections: int, outcome: Outcome) -> None:
    mib = victim.attack(kind, connections)
    outcome.connection_mib = max(outcome.connection_mib or 0.0, mib)
    most = MORE_MIB.get(kind, MOST_MIB)
    if mib > most:
        outcome.notes.append(f"{kind}: {mib:.1f} MiB a connection, {most} are allowed")
    if not victim.is_well():
        outcome.notes.append(f"{kind}: the proxy serves nobody any more, or was replaced")
    outcome.errors = victim.daemon.errors
