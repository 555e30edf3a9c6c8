"""WebSockets that a replica runs over its client's connection, and the deaths of everybody who has to do with them."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from servd.ground.clock import SystemClock
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

APP = """
import os
from servd import deployment, ingress

async def asgi(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": f"{VERSION} {os.getpid()}"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})

@deployment(graceful_shutdown_timeout_s=1, max_ongoing_requests=10)
@ingress(asgi)
class Echo:
    pass

app = Echo.bind()
"""


class Talk:
    """One WebSocket. pid: of the replica that runs it."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self.socket = connect(f"ws://127.0.0.1:{daemon.settings.http_port}/", max_size=None).__enter__()
        self.version, pid = str(self.socket.recv(timeout=10)).split()
        self.pid = int(pid)

    def echo(self, text: str) -> None:
        self.socket.send(text)
        assert self.socket.recv(timeout=10) == text

    def end(self) -> tuple[int, float]:
        """The code that it is closed with, 1006 for none, and seconds until then."""
        clock = SystemClock()
        began = clock.now()
        with pytest.raises(ConnectionClosed) as ended:
            self.socket.recv(timeout=20)
        self.socket.close()
        received = ended.value.rcvd
        return 1006 if received is None else received.code, clock.now() - began


def sockets_of(pid: int) -> int:
    """How many sockets of TCP a process holds."""
    inodes = {line.split()[9] for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]}
    held = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            held.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            # closed meanwhile
            pass
    return sum(target.removeprefix("socket:[").rstrip("]") in inodes for target in held)


def maps_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_whoever_dies_its_clients_are_told_what_is_true(tmp_path: Path) -> None:
    (tmp_path / "echoapp.py").write_text(f"VERSION = 1\n{APP}")
    with a_daemon(settings_in(tmp_path, proxies=1)) as daemon:
        daemon.deploy(tmp_path, "echoapp:app")
        first = Talk(daemon)
        first.echo("x" * 3_000_000)
        (proxy,) = daemon.pids("proxy")
        assert "speedups" in maps_of(first.pid), "the replica speaks to the client itself"
        assert sockets_of(first.pid) == 1
        # an ordinary end leaves nothing
        others = [Talk(daemon) for _ in range(5)]
        assert sockets_of(first.pid) == 6
        for other in others:
            other.socket.close()
        eventually(lambda: sockets_of(first.pid) == 1)
        _the_replica_dies(daemon, first)
        _the_proxy_dies(daemon, proxy)
        _the_replica_is_replaced(daemon, tmp_path)
        last = Talk(daemon)
        daemon.process.send_signal(signal.SIGINT)
        assert last.end()[0] == 1012


def _the_replica_dies(daemon: RunningDaemon, talk: Talk) -> None:
    os.kill(talk.pid, signal.SIGKILL)
    assert talk.end()[0] == 1006
    eventually(lambda: _pid_of(daemon) not in (None, talk.pid))


def _pid_of(daemon: RunningDaemon) -> Any:
    try:
        talk = Talk(daemon)
    except OSError:
        return None
    talk.socket.close()
    return talk.pid


def _the_proxy_dies(daemon: RunningDaemon, proxy: int) -> None:
    talk = Talk(daemon)
    talk.echo("y" * 3_000_000)
    os.kill(proxy, signal.SIGKILL)
    code, seconds = talk.end()
    assert (code, seconds < 1) == (1012, True), "by its replica"
    eventually(lambda: _pid_of(daemon) == talk.pid)


def _the_replica_is_replaced(daemon: RunningDaemon, code: Path) -> None:
    talk = Talk(daemon)
    (code / "echoapp.py").write_text(f"VERSION = 2\n{APP}")
    document = {"import_path": "echoapp:app", "runtime_env": {"working_dir": str(code), "env_vars": {"A": "2"}}}
    assert daemon.ask("PUT", "/api/serve/deployments/", document)[0] == 200
    daemon.wait_until_running()
    assert Talk(daemon).version == "2"
    assert talk.end()[0] == 1012
