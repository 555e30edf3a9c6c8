"""A replica room for tests: a real fork server and real replicas, with the test in the controller's place."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from servd.calls import pickling
from servd.calls.caller import Caller
from servd.calls.request_context import RequestContext
from servd.ground import descendants, settings
from servd.ground.pidfd import start_ticks
from servd.wire.build_messages import BuildOrder
from servd.wire.codec import RecordReader, encode_message, record
from servd.wire.messages import (
    ChildExited,
    DeploymentTargets,
    Endpoint,
    Forked,
    ForkOrder,
    ForkServerHello,
    Hello,
    ReplicaGoal,
    ReplicaReport,
    ReplicaStart,
    Routing,
)

LIMIT_S = 60.0
"""For a fact to come true. Imports of large libraries take half a minute from a cold disk."""
REPOSITORY = Path(__file__).parents[2]
_SERVE = (
    "import sys; from multiprocessing.connection import Connection; from servd.wire.codec import decode_message; "
    "from servd.replica.fork_server import serve; "
    "serve(decode_message(sys.stdin.buffer.read()), Connection(int(sys.argv[1]), writable=False))"
)
_SPAWNED = (
    "import sys; from multiprocessing.connection import Connection; from servd.wire.codec import decode_message; "
    "from servd.replica.spawned import run_spawned; start, order = decode_message(sys.stdin.buffer.read()); "
    "run_spawned(start, order, Connection(int(sys.argv[1]), writable=False))"
)


class Line:
    """One accepted or opened stream of records; what is heard waits in `news` until somebody asks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.news: asyncio.Queue[Any] = asyncio.Queue()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        records = RecordReader()
        while data := await self.reader.read(65536):
            for message in records.feed(data):
                self.news.put_nowait(message)

    def send(self, message: Any) -> None:
        self.writer.write(record(message))

    async def next(self, kind: type[Any], fits: Callable[[Any], bool] = lambda _: True) -> Any:
        """The next message of that kind for which `fits`; others are dropped."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                message = await self.news.get()
                if isinstance(message, kind) and fits(message):
                    return message

    def close(self) -> None:
        self.task.cancel()
        self.writer.close()


class Room:
    """The test's side: control endpoint, fork server, lines of replicas by id, a caller for handle calls."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket_dir = home / "s"
        self.app_dir = home / "app"
        for path in (self.socket_dir, self.app_dir):
            path.mkdir()
        self.replicas: dict[str, Line] = {}
        self.hellos: dict[str, Hello] = {}
        self.greeted = asyncio.Event()
        self.lifetime_read, self.lifetime_write = os.pipe()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.fork_server: Line | None = None
        self.addresses: dict[str, str] = {}
        self.caller = Caller(asyncio.get_running_loop(), "test", lambda _: None)
        self.generation = 0

    def write(self, **modules: str) -> None:
        """Modules of the application."""
        for name, text in modules.items():
            (self.app_dir / f"{name}.py").write_text(text)

    def order(self, import_path: str, **fields: Any) -> BuildOrder:
        fields = {"runtime_env": {"working_dir": str(self.app_dir)}, "args": {}, **fields}
        return BuildOrder(
            "f1",
            "b1",
            "shop",
            import_path,
            token="t",
            start_dir=str(self.home),
            socket_path=str(self.socket_dir / "f"),
            state_dir=str(self.home),
            socket_dir=str(self.socket_dir),
            log_dir=str(self.home / "logs"),
            **fields,
        )

    async def open_fork_server(self, order: BuildOrder, **variables: str) -> ForkServerHello:
        self._run(_SERVE, order, variables)
        return await self.connect(order)

    async def connect(self, order: BuildOrder) -> ForkServerHello:
        """Be a (further) controller of the fork server."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    reader, writer = await asyncio.open_unix_connection(order.socket_path)
                    break
                except OSError:
                    await asyncio.sleep(0.005)
        self.fork_server = Line(reader, writer)
        hello: ForkServerHello = await self.fork_server.next(ForkServerHello)
        return hello

    def _run(self, program: str, message: Any, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.lifetime_read)],
            stdin=subprocess.PIPE,
            pass_fds=[self.lifetime_read],
            env=environment,
        )
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write(encode_message(message))
        process.stdin.close()
        return process

    def start_of(self, deployment: str, suffix: str = "a", **goal: Any) -> ReplicaStart:
        replica_id = f"shop_{deployment}#{suffix}"
        values = {
            "config_version": "v1",
            "user_config": "",
            "max_concurrent_queries": 100,
            "health_check_period_s": 10.0,
            "health_check_timeout_s": 30.0,
            "graceful_shutdown_timeout_s": 10.0,
            **goal,
        }
        address = f"ipc://{self.socket_dir}/r-{deployment}-{suffix}"
        self.addresses[replica_id] = address
        return ReplicaStart(
            replica_id,
            "shop",
            deployment,
            "token",
            address,
            ReplicaGoal(replica_id, **values),
            1,
            str(self.home),
            str(self.socket_dir),
            str(self.home / "logs"),
        )

    async def fork(self, start: ReplicaStart) -> Forked:
        assert self.fork_server is not None
        self.fork_server.send(ForkOrder(start))
        forked: Forked = await self.fork_server.next(Forked)
        return forked

    def spawn(self, start: ReplicaStart, order: BuildOrder) -> subprocess.Popen[bytes]:
        return self._run(_SPAWNED, [start, order], {})

    async def report(self, replica_id: str, fits: Callable[[ReplicaReport], bool]) -> ReplicaReport:
        async with asyncio.timeout(LIMIT_S):
            while replica_id not in self.replicas:
                self.greeted.clear()
                await self.greeted.wait()
        report: ReplicaReport = await self.replicas[replica_id].next(ReplicaReport, fits)
        return report

    async def running(self, start: ReplicaStart) -> Forked:
        """A forked replica that is RUNNING and routed."""
        forked = await self.fork(start)
        assert forked.error == ""
        report = await self.report(start.replica_id, lambda r: r.phase in ("running", "failed"))
        assert report.error == ""
        self.route(start)
        return forked

    def route(self, *starts: ReplicaStart) -> None:
        self.generation += 1
        by_name: dict[str, list[Endpoint]] = {}
        for start in starts:
            by_name.setdefault(f"shop_{start.deployment}", []).append(Endpoint(start.replica_id, start.address))
        targets = tuple(DeploymentTargets(name, "shop", endpoints=tuple(e)) for name, e in by_name.items())
        self.caller.apply_routing(Routing(self.generation, (), targets))

    async def call(self, deployment: str, method: str, *args: Any) -> Any:
        ticket = self.caller.submit_call(
            f"shop_{deployment}", method, pickling.dumps((args, {})), RequestContext("r1", "/", "shop")
        )
        async with asyncio.timeout(LIMIT_S):
            return pickling.loads(await ticket)

    def set_goal(self, start: ReplicaStart, **changes: Any) -> None:
        self.replicas[start.replica_id].send(dataclasses.replace(start.goal, **changes))

    async def exited(self, replica_id: str) -> int:
        assert self.fork_server is not None
        exited = await self.fork_server.next(ChildExited, lambda e: e.replica_id == replica_id)
        return int(exited.exit_code)

    def end_lifetime(self) -> None:
        if self.lifetime_write >= 0:
            os.close(self.lifetime_write)
            self.lifetime_write = -1

    async def serve_line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        hello = await line.next(Hello)
        self.hellos[hello.id] = hello
        self.replicas[hello.id] = line
        self.greeted.set()

    def close(self) -> None:
        self.caller.close()
        self.end_lifetime()
        os.close(self.lifetime_read)
        for line in [*self.replicas.values(), *([self.fork_server] if self.fork_server else [])]:
            line.close()
        leaders = {(hello.pid, start_ticks(hello.pid)) for hello in self.hellos.values()}
        for hello in self.hellos.values():
            try:
                os.kill(hello.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            process.kill()
            process.wait(LIMIT_S)
        # as a controller does behind a replica that was killed
        descendants.end_families(leaders)


@asynccontextmanager
async def a_room() -> AsyncIterator[Room]:
    """A room with an empty application directory; everything in it ends with it."""
    # paths of sockets are short, those of pytest's directories are not
    with tempfile.TemporaryDirectory(prefix="servd-") as home:
        room = Room(Path(home))
        server = await asyncio.start_unix_server(room.serve_line, settings.control_socket(str(room.socket_dir)))
        try:
            yield room
        finally:
            room.close()
            server.close()
