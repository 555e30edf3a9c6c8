"""Clients whose hosts vanish without a word are noticed, whatever was under way."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h2.config
import h2.connection
import pytest

from servd.daemon.listeners import Listeners
from servd.ground import event_loop
from servd.ground.keep_alive import KeepAlive
from servd.proxy.client_host import Silence, is_silent
from servd.proxy.limits import Limits
from servd.replica.exchange import HttpExchange
from tests.fakes import Room, turning, wait_until
from tests.ports import free_port
from tests.rooms.test_websockets import HEAD

SOON = KeepAlive(after_s=1, every_s=1, probes=1)


def tcp_info(*, retransmits: int = 0, probes: int = 0, last_ack_s: float) -> bytes:
    """The first 60 bytes of the kernel's `struct tcp_info`."""
    return bytes((1, 0, retransmits, probes)).ljust(56, b"\0") + struct.pack("=I", round(last_ack_s * 1000))


@pytest.mark.parametrize(
    ("retransmits", "probes", "last_ack_s", "expected"),
    [(0, 0, 90, False), (3, 0, 49.9, False), (3, 0, 50, True), (0, 2, 51, True), (0, 0, 0, False)],
)
def test_silence_is_questions_without_an_answer(
    retransmits: int, probes: int, last_ack_s: float, expected: bool
) -> None:
    assert is_silent(tcp_info(retransmits=retransmits, probes=probes, last_ack_s=last_ack_s), 50) is expected
    assert not is_silent(b"", 50), "nobody knows"


class FakeSocket(socket.socket):
    """Of whose client the kernel knows what it is told here."""

    info = b""

    def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
        return self.info


def test_the_last_question_has_as_long_to_be_answered_as_any_probe() -> None:
    with FakeSocket() as sock:
        # a client that has long stopped reading is asked by the kernel every two minutes
        sock.info = tcp_info(probes=1, last_ack_s=119)
        silence = Silence(KeepAlive())
        assert not any(silence.look(sock) for _ in range(10))
        assert silence.look(sock)
        sock.info = tcp_info(last_ack_s=0)
        assert not silence.look(sock)
        sock.info = tcp_info(probes=1, last_ack_s=119)
        assert not silence.look(sock)
        off = Silence(KeepAlive(after_s=0))
        assert not any(off.look(sock) for _ in range(100))


@pytest.mark.parametrize("keep_alive", [KeepAlive(), SOON, KeepAlive(after_s=0)])
@pytest.mark.parametrize("is_kept", [False, True])
def test_clients_are_probed_that_came_before_any_proxy(keep_alive: KeepAlive, is_kept: bool) -> None:
    port = free_port()
    # a daemon of an older edition has told its listening sockets nothing
    [listener] = Listeners(keep_alive=KeepAlive(after_s=0) if is_kept else keep_alive).open("127.0.0.1", port, 1)
    if is_kept:
        Listeners(kept={("127.0.0.1", port): [listener]}, keep_alive=keep_alive)
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == (keep_alive.after_s > 0)
        if keep_alive.after_s:
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            found = [accepted.getsockopt(socket.IPPROTO_TCP, option) for option in options]
            assert found == [keep_alive.after_s, keep_alive.every_s, keep_alive.probes]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROBE_AFTER_S", "-1"),
        ("PROBE_AFTER_S", "32768"),
        ("PROBE_EVERY_S", "0"),
        ("PROBES", "128"),
        ("WS_PING_INTERVAL_S", "-1"),
        ("WS_PING_TIMEOUT_S", "-1"),
    ],
)
def test_settings_that_the_kernel_would_refuse_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SERVD_HTTP_{name}", value)
    with pytest.raises(ValueError, match=f"{name.lower()}={value}|SERVD_HTTP_{name}={value}"):
        Limits.from_environment()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PROBE_AFTER_S", 5), ("PROBE_EVERY_S", 2), ("PROBES", 4)):
        monkeypatch.setenv(f"SERVD_HTTP_{name}", str(value))
    monkeypatch.setenv("SERVD_HTTP_WS_PING_INTERVAL_S", "2.5")
    monkeypatch.setenv("SERVD_HTTP_WS_PING_TIMEOUT_S", "0")
    expected = Limits(keep_alive=KeepAlive(5, 2, 4), ws_ping_interval_s=2.5, ws_ping_timeout_s=0)
    assert Limits.from_environment() == expected


CLONE_NEWNET = 0x40000000
GONE, STAYS = "10.77.0.2", "10.77.0.3"


def vanish() -> None:
    """Nothing that the host `GONE` sends arrives any more."""
    subprocess.run(["ip", "rule", "add", "pref", "50", "from", GONE, "blackhole"], check=True)


def in_a_network_of_its_own(work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run this on a loop in a thread with a network namespace of its own."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and the ip program for a network namespace of its own")

    def run() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace of its own: {os.strerror(ctypes.get_errno())}")
        for command in (
            "link set lo up",
            f"addr add {GONE}/32 dev lo",
            f"addr add {STAYS}/32 dev lo",
            "rule add pref 100 lookup local",
            "rule del pref 0",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        event_loop.run(work())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


def http1(path: str, method: str = "GET", more: bytes = b"\r\n") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n".encode() + more


def http2(path: str, *pairs: tuple[str, str], method: str = "GET") -> bytes:
    client = h2.connection.H2Connection(h2.config.H2Configuration())
    client.initiate_connection()
    head = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", path), *pairs]
    client.send_headers(client.get_next_available_stream_id(), head, end_stream=method == "GET")
    return client.data_to_send()


WAYS = {
    "/waits": http1("/waits"),
    "/waits/pipelined": http1("/waits/pipelined") + http1("/never") + http1("/never"),
    "/streams": http1("/streams"),
    "/waits/upload": http1("/waits/upload", "POST", b"content-length: 3000000\r\n\r\n" + b"x" * 2_000_000),
    "/socket": HEAD.replace(b"GET /", b"GET /socket") + b"\r\n",
    "/waits/http2": http2("/waits/http2"),
    "/streams/http2": http2("/streams/http2"),
    "/socket/http2": http2(
        "/socket/http2", (":protocol", "websocket"), ("sec-websocket-version", "13"), method="CONNECT"
    ),
}
SECURE_WAYS = {
    "/waits/tls": http1("/waits/tls"),
    "/streams/tls": http1("/streams/tls"),
    "/socket/tls": HEAD.replace(b"GET /", b"GET /socket/tls") + b"\r\n",
}


class Handler:
    """Counts by path what begins and ends."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    async def __call__(self, exchange: HttpExchange) -> None:
        path = exchange.scope["path"]
        self.begun[path] += 1
        try:
            if path.startswith("/socket"):
                await exchange.receive()
                await exchange.send({"type": "websocket.accept"})
                while (await exchange.receive())["type"] != "websocket.disconnect":
                    pass
            elif path.startswith("/waits"):
                await asyncio.Event().wait()
            else:
                await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
                body = b"x" * (100_000 if path == "/floods" else 100)
                while True:
                    await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
                    await asyncio.sleep(0.05)
        finally:
            self.ended[path] += 1


@pytest.mark.slow
def test_slots_of_clients_that_vanish_are_free_soon(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    handler, limits = Handler(), Limits(keep_alive=SOON)

    async def work() -> None:
        room, secure = Room(hand_over=True, limits=limits), Room(hand_over=True, limits=limits, tls=tls[0])
        async with room, secure, contextlib.AsyncExitStack() as clients:
            for each in (room, secure):
                SOON.put_on(each._server.sockets[0])
                each.route(each.replica(handler), each.replica(handler))
            for data in WAYS.values():
                clients.callback(abort, await ask(room, data))
            for data in SECURE_WAYS.values():
                clients.callback(abort, await ask(secure, data, tls[1]))
            clients.callback(abort, await ask(room, http1("/floods"), host=STAYS))
            ways = Counter([*WAYS, *SECURE_WAYS])
            # the other lane is loaded first
            await wait_until(lambda: handler.begun == ways + Counter(["/floods"]), 20)
            floods: set[Any] = set(room.listener.connections)
            await wait_until(lambda: any(connection._is_write_paused or connection._is_lent for connection in floods))
            vanish()
            with turning(room, secure, every_s=0.1), contextlib.suppress(TimeoutError):
                await wait_until(
                    lambda: handler.ended == ways and (connections(room), connections(secure)) == (1, 0), 15
                )
            assert handler.ended == ways, (handler.begun, room.listener, room.lane, secure.listener, secure.lane)
            assert handler.begun == ways + Counter(["/floods"]), "nobody is asked to do it again"
            assert (connections(room), connections(secure)) == (1, 0), "a client that is there and does not read stays"

    in_a_network_of_its_own(work)


def abort(writer: asyncio.StreamWriter) -> None:
    """Without this a loop that ends would wait for clients."""
    writer.transport.abort()


def connections(room: Room) -> int:
    """Of both lanes."""
    return len(room.listener.connections) + room.lane.connections


async def ask(room: Room, data: bytes, tls: ssl.SSLContext | None = None, host: str = GONE) -> asyncio.StreamWriter:
    """A connection from this host that has said this."""
    name = "localhost" if tls is not None else None
    _, writer = await asyncio.open_connection(
        "127.0.0.1", room.port, local_addr=(host, 0), limit=1, ssl=tls, server_hostname=name
    )
    writer.write(data)
    return writer
