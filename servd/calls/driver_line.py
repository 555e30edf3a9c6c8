"""How a process that only holds handles reaches replicas: a loop in a thread, a caller, a line to the controller."""

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from servd.calls.arguments import NO_ARGUMENTS, Arguments
from servd.calls.caller import Caller
from servd.calls.outgoing import CallTicket
from servd.calls.process import Process, install_process, installed_process, remove_process
from servd.calls.request_context import RequestContext
from servd.ground.edition import own_edition
from servd.ground.ids import random_hex
from servd.ground.pidfd import start_ticks
from servd.ground.settings import control_socket
from servd.observability import spans
from servd.wire.control_link import ControlLink
from servd.wire.messages import (
    CallerReport,
    DeploymentTargets,
    Hello,
    MetricFamily,
    MetricsReport,
    MetricsWish,
    Refused,
    Routing,
    Subscribe,
)

_REPORT_S = 0.25
_CLOSE_LIMIT_S = 5.0


_of_parents: list[Process] = []


def _begin_child() -> None:
    """In a forked child the line's thread is not there: the next call opens a line of the child's own."""
    process = installed_process()
    if process is not None and isinstance(process.caller, DriverLine):
        # kept, since its loop cannot be closed here: parent and child wait on one set of descriptors
        _of_parents.append(process)
        remove_process()


os.register_at_fork(after_in_child=_begin_child)


class DriverLine:
    """The loop, caller and control line of a driver process; handles of the process use it until `close()`."""

    def __init__(self, socket_dir: str) -> None:
        self.socket_dir = socket_dir
        self._id = f"driver-{os.getpid()}-{random_hex(8)}"
        self._generation = 0
        self._said: CallerReport | None = None
        self._refusal = ""
        if spans.begin("driver", self._id, {}, begins=True) is not None:
            atexit.register(spans.end)
        spans.expect_traces()
        self._loop = asyncio.new_event_loop()
        self._stopped: asyncio.Event | None = None
        started: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="servd-driver", daemon=True)
        self._thread.start()
        started.wait()

    def __repr__(self) -> str:
        return f"DriverLine({self._id}, {self.socket_dir})"

    @property
    def is_running(self) -> bool:
        """False after `close()`, and in a child that was forked from the process."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Fail what is under way and end the thread."""
        remove_process()
        if self._thread.is_alive() and self._stopped is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(_CLOSE_LIMIT_S)
        spans.end()
        spans.install(None)
        atexit.unregister(spans.end)

    def submit_call(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        *,
        stream: bool = False,
        model_id: str = "",
        deadline: float | None = None,
        session_id: str = "",
        arguments: Arguments = NO_ARGUMENTS,
    ) -> CallTicket:
        """As `Caller.submit_call`; a call that has to wait is reported at once, since it may need a replica started."""
        ticket = self._caller.submit_call(
            deployment,
            method,
            parts,
            context,
            stream=stream,
            model_id=model_id,
            deadline=deadline,
            session_id=session_id,
            arguments=arguments,
        )
        if self._said is not None and not self._said.queued and self._caller.queued():
            self._report()
        return ticket

    async def submit_to_all(self, *call: Any) -> Sequence[CallTicket]:
        """As `Caller.submit_to_all`."""
        return await self._caller.submit_to_all(*call)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live(started))
        finally:
            self._loop.close()

    async def _live(self, started: threading.Event) -> None:
        self._stopped = asyncio.Event()
        self._caller = Caller(self._loop, self._id, self._subscribe, self._applied)
        self._link = ControlLink(control_socket(self.socket_dir), self._hello, self._received, self._connected)
        self.process: Process = install_process(self, self._loop, socket_dir=self.socket_dir)
        line = self._loop.create_task(self._link.run())
        started.set()
        while not self._stopped.is_set():
            try:
                await asyncio.wait_for(self._stopped.wait(), _REPORT_S)
            except TimeoutError:
                self._report()
        line.cancel()
        self._caller.close()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(line, return_exceptions=True)

    def _hello(self) -> Hello:
        return Hello("caller", self._id, os.getpid(), start_ticks(os.getpid()), "", own_edition().text)

    def _connected(self) -> None:
        self._said = None
        self._link.send(Subscribe(self._caller.subscriptions()))

    def _received(self, message: Any) -> None:
        if isinstance(message, Routing):
            self._refusal = ""
            self._caller.apply_routing(message)
        elif isinstance(message, MetricsWish):
            self._link.send(MetricsReport(message.request_id, tuple(self._metrics())))
        elif isinstance(message, Refused):
            self._refusal = message.reason
            self._refuse(self._caller.subscriptions())

    def _refuse(self, deployments: tuple[str, ...]) -> None:
        """Let every call fail with the reason: nobody will ever say where the replicas are."""
        targets = (DeploymentTargets(name, unavailable=self._refusal) for name in deployments)
        self._caller.apply_routing(Routing(self._generation, targets=tuple(targets)))

    def _metrics(self) -> list[MetricFamily]:
        # few drivers measure anything
        user = sys.modules.get("servd.metrics")
        return [*self._caller.metrics(), *(user.families() if user is not None else ())]

    def _subscribe(self, deployments: tuple[str, ...]) -> None:
        self._link.send(Subscribe(deployments))
        if self._refusal:
            self._loop.call_soon(self._refuse, deployments)

    def _applied(self, generation: int) -> None:
        self._generation = generation
        self._report()

    def _report(self) -> None:
        report = CallerReport(self._generation, self._caller.queued())
        if report != self._said and self._link.send(report):
            self._said = report
