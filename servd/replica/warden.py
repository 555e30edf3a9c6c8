"""The warden: a replica's second thread, with a loop of its own that stays alive while user code blocks the main one."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from servd.ground import descendants, settings
from servd.ground.edition import own_edition
from servd.ground.event_loop import run
from servd.ground.pidfd import start_ticks
from servd.ground.process import own_usage, resident_bytes, watch_lifetime
from servd.ground.states import ReplicaPhase
from servd.observability.error_groups import ErrorGroups
from servd.observability.figures import OwnFigures
from servd.observability.loop_watch import LoopWatch, stacks
from servd.observability.measures import LoopLag
from servd.replica.health import HealthChecks
from servd.replica.native.lost_waits import LostWaits
from servd.replica.sync_threads import ThreadsWatch
from servd.replica.ward import Ward
from servd.wire.began import remove_files
from servd.wire.control_link import ControlLink
from servd.wire.doorstep import Doorstep
from servd.wire.messages import (
    CallerReport,
    Hello,
    MetricsReport,
    MetricsWish,
    ReplicaGoal,
    ReplicaReport,
    ReplicaStart,
    Routing,
    StackReport,
    StackWish,
    Subscribe,
)

IDLE_PERIOD_S = 12.0
"""How often at least to look at a replica that has nothing to do; whatever begins ends the pause, and so does a health check."""

SIGN_OF_LIFE_S = 5.0
"""After so long without a report the next look sends one."""

STUCK_AFTER_S = 5.0
"""A main loop that did not turn for so long is diagnosed."""

ADDRESS_PERIOD_S = 1.0
"""How often at most to look whether the replica's socket is still there, and descriptors for those who connect."""

EARLY_END_S = 1.0
"""How long the main thread may take to notice that its start is to end."""

MEMORY_STEP_BYTES = 1024 * 1024
"""A change of the memory in use is worth a report from here on."""

logger = logging.getLogger(__name__)


class Warden:
    """Owns the line to the controller: greeting, reports, health verdicts, diagnosis of a stuck main thread.

    Made on the main thread. Methods may be called from any thread unless they say otherwise. tend_log: to be called now and then.
    """

    def __init__(
        self,
        start: ReplicaStart,
        main_loop: asyncio.AbstractEventLoop,
        ward: Ward,
        lifetime_fd: int,
        lag: LoopLag | None = None,
        tend_log: Callable[[], None] = lambda: None,
        errors: ErrorGroups | None = None,
    ) -> None:
        self._start = start
        self._tend_log = tend_log
        # now, and not at each greeting: there may be no descriptor to look it up with then
        self._ticks = start_ticks(os.getpid())
        self._main_loop = main_loop
        self._ward = ward
        self._errors = errors or ErrorGroups()
        self._figures = OwnFigures(start.replica_id, ward.requests, own_usage)
        self._lifetime_fd = lifetime_fd
        self._loop: asyncio.AbstractEventLoop
        self._is_up = threading.Event()
        self._is_resting, self._asks_main = False, True
        self._roused = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="warden", daemon=True)
        self._report = ReplicaReport(start.replica_id, ReplicaPhase.STARTING)
        self._said: ReplicaReport | None = None
        self._said_at = self._address_at = 0.0
        self._subscribed = Subscribe(())
        self._caller_report: CallerReport | None = None
        self._caller_said: CallerReport | None = None
        self.health: HealthChecks | None = None
        self._threads = ThreadsWatch(ward.occupied)
        self._are_threads_stuck = False
        self._doorstep = Doorstep(start.address)
        self.report_period_s = start.goal.report_period_s
        self._watch = LoopWatch(self._in_main, threading.get_ident(), stuck_after_s=STUCK_AFTER_S, lag=lag)
        self._lost_waits = LostWaits(self._in_main)
        self._link = ControlLink(
            settings.control_socket(start.socket_dir), self._hello, self._on_message, self._on_connect
        )

    def __repr__(self) -> str:
        return f"Warden({self._link}, {self._report})"

    @property
    def phase(self) -> str:
        """What was last reported."""
        return self._report.phase

    def start(self) -> None:
        """Begin; returns when its loop runs."""
        self._thread.start()
        self._is_up.wait()

    def rouse(self) -> None:
        """Something has begun, and the ward's counts show it: look often from now on."""
        if self._is_resting:
            self._is_resting = False
            self._figures.stir()
            # not at once: what has begun has the interpreter to itself first
            self._in_loop(self._loop.call_later, self.report_period_s, self._roused.set)

    def report(self, **changes: Any) -> None:
        """Change fields of the report and send it."""
        self._in_loop(self._change, changes)

    def subscribe(self, deployments: tuple[str, ...]) -> None:
        """Ask for the targets of exactly these deployments (full names)."""
        self._in_loop(self._subscribe, deployments)

    def routing_applied(self, generation: int) -> None:
        """Acknowledge a routing."""
        self._in_loop(self._acknowledge, generation)

    async def first_check(self, check: Callable[[], Any] | None) -> None:
        """Run the check that ends the start-up; raises what it raises. To be awaited on the main loop."""
        goal = self._start.goal
        self.health = HealthChecks(
            self._main_loop,
            check,
            self._on_verdict,
            period_s=goal.health_check_period_s,
            timeout_s=goal.health_check_timeout_s,
            further=lambda timeout_s: self._threads.verdict(timeout_s, is_wanted=self._ward.is_wanted),
        )
        if check is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.health.first(), self._loop))

    def watch_health(self) -> None:
        """Check periodically from now on; `first_check` comes before."""
        assert self.health is not None
        asyncio.run_coroutine_threadsafe(self.health.run(), self._loop)

    def set_health_times(self, period_s: float, timeout_s: float) -> None:
        """Use these from now on."""
        if self.health is not None:
            self._in_loop(self.health.set_times, period_s, timeout_s)

    def send_metrics(self) -> None:
        """Send what was counted, before the process ends."""
        self._in_loop(self._send_metrics, 0)

    def flush(self, limit_s: float = 1.0) -> None:
        """Send what is not sent yet; blocks the calling thread, for `limit_s` at most."""
        try:
            asyncio.run_coroutine_threadsafe(self._flush(limit_s), self._loop).result(limit_s + 1.0)
        except TimeoutError:
            logger.warning("report_not_flushed")

    def _in_loop(self, function: Callable[..., object], *args: Any) -> None:
        self._loop.call_soon_threadsafe(function, *args)

    def _in_main(self, function: Callable[..., None], *args: Any) -> None:
        # else the main loop has ended, and the process is about to
        with contextlib.suppress(RuntimeError):
            self._main_loop.call_soon_threadsafe(function, *args)

    def _serve(self) -> None:
        run(self._main())

    async def _main(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        on_end = partial(self._in_main, self._ward.lifetime_ended)
        watch_lifetime(loop, self._lifetime_fd, on_end, at_limit=self._cut_off)
        line = asyncio.create_task(self._link.run())
        self._is_up.set()
        while not line.done():
            await self._pause()
            if not self._report.lost_wait:
                self._look_at_main_loop(loop.time())
                self._look_at_lost_waits(loop.time())
            if loop.time() >= self._address_at:
                self._address_at = loop.time() + ADDRESS_PERIOD_S
                self._doorstep.look()
                self._look_at_address()
                self._tend_log()
            self._look_at_memory()
            if loop.time() - self._said_at > SIGN_OF_LIFE_S:
                self._said = None
            self._send()
        line.result()

    async def _pause(self) -> None:
        # before the question: what begins after the answer finds that it rests, and rouses it
        self._is_resting = True
        if self._is_still() and not self._watch.is_waiting:
            self._roused.clear()
            self._asks_main = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._figures.rest_s(asyncio.get_running_loop().time(), IDLE_PERIOD_S)):
                    await self._roused.wait()
            # it rests until it is roused: what begins and ends during this look is found by another
            return
        self._is_resting = False
        self._figures.stir()
        await asyncio.sleep(self.report_period_s)

    def _is_still(self) -> bool:
        """Whether nothing is under way that a look may find, and the controller knows the last of it."""
        self._count()
        is_said = self._report == self._said and self._caller_report == self._caller_said
        is_well = self._report.phase == ReplicaPhase.RUNNING and not self._report.stack
        return is_said and is_well and self._errors.is_said and not self._report.ongoing and not self._ward.queued()

    def _cut_off(self) -> None:
        remove_files(self._start.address)
        descendants.leave(1)

    def _hello(self) -> Hello:
        token, edition = self._start.token, own_edition().text
        return Hello("replica", self._start.replica_id, os.getpid(), self._ticks, token, edition)

    def _on_connect(self) -> None:
        self._said = self._caller_said = None
        self._errors.forget_said()
        self._figures.forget_said()
        if self._subscribed.deployments:
            self._link.send(self._subscribed)
        self._send()

    def _on_message(self, message: Any) -> None:
        if isinstance(message, ReplicaGoal):
            if message.drain and self._report.phase == ReplicaPhase.STARTING:
                # nobody waits for it, and the constructor may take minutes
                if not self._ward.can_end_early:
                    self._leave_start()
                asyncio.get_running_loop().call_later(EARLY_END_S, self._leave_start)
            # it comes once more where the daemon's own sockets were removed
            self._address_at = 0.0
            self._roused.set()
            self._in_main(self._ward.set_goal, message)
        elif isinstance(message, Routing):
            self._in_main(self._ward.apply_routing, message)
        elif isinstance(message, MetricsWish):
            self._send_metrics(message.request_id)
        elif isinstance(message, StackWish):
            self._link.send(StackReport(message.request_id, stacks(self._main_loop)))

    def _leave_start(self) -> None:
        """End the process, unless the main thread has ended the start itself."""
        if self._report.phase == ReplicaPhase.STARTING:
            logger.info("stopped_while_starting")
            descendants.leave(0)

    def _send_metrics(self, request_id: int) -> None:
        self._link.send(MetricsReport(request_id, tuple(self._ward.metrics())))

    def _change(self, changes: dict[str, Any]) -> None:
        self._report = dataclasses.replace(self._report, **changes)
        self._send()

    def _subscribe(self, deployments: tuple[str, ...]) -> None:
        self._subscribed = Subscribe(deployments)
        self._link.send(self._subscribed)

    def _acknowledge(self, generation: int) -> None:
        self._caller_report = CallerReport(generation, self._ward.queued())
        self._send()

    def _on_verdict(self, failures: int, message: str) -> None:
        if failures and self._report.stack and "blocked" not in message:
            message = f"{message}: {self._report.stack.splitlines()[0]}"
        if failures:
            logger.warning("health_check_failed failures=%d message=%s", failures, message)
        self._change({"health_failures": failures, "health_message": message})
        # one thing more while this thread is awake; the main loop may just have shown that it turns
        self._asks_main = bool(failures) or self.health is None or not self.health.asks_main_loop
        self._roused.set()

    def _count(self) -> None:
        """Take the ward's counts into the reports; it changes them in the midst of this."""
        if (ongoing := self._ward.ongoing) != self._report.ongoing:
            self._report = dataclasses.replace(self._report, ongoing=ongoing)
        # a replica without multiplexed methods never loads that module
        multiplex = sys.modules.get("servd.app.model_pool")
        if multiplex is not None and self._report.model_ids != (held := multiplex.loaded_model_ids()):
            self._report = dataclasses.replace(self._report, model_ids=held)
        if self._caller_report is not None and (queued := self._ward.queued()) != self._caller_report.queued:
            self._caller_report = dataclasses.replace(self._caller_report, queued=queued)

    def _send(self, *, is_last: bool = False) -> None:
        self._count()
        self._errors.say(self._link.send, asyncio.get_running_loop().time(), at_once=is_last)
        if self._report != self._said and self._link.send(self._report):
            self._said = self._report
            self._said_at = asyncio.get_running_loop().time()
        if self._caller_report != self._caller_said and self._link.send(self._caller_report):
            self._caller_said = self._caller_report
        self._figures.say(self._link.send, asyncio.get_running_loop().time())

    async def _flush(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + limit_s
        self._figures.say(self._link.send, loop.time(), at_once=True)
        while loop.time() < limit:
            self._send(is_last=True)
            if self._said == self._report and self._errors.is_said and self._link.is_idle:
                return
            await asyncio.sleep(0.002)

    def _look_at_memory(self) -> None:
        limit = self._start.goal.memory_limit_bytes
        if not limit:
            return
        try:
            size, said = resident_bytes(), self._report.memory_bytes
        except OSError:
            # no descriptor is left
            return
        if abs(size - said) >= MEMORY_STEP_BYTES or (size > limit) != (said > limit):
            self._report = dataclasses.replace(self._report, memory_bytes=size)

    def _look_at_address(self) -> None:
        is_up = self._report.phase in (ReplicaPhase.RUNNING, ReplicaPhase.UPDATING)
        if is_up and self._doorstep.is_gone:
            self._in_main(self._ward.address_is_gone)

    def _look_at_main_loop(self, now: float) -> None:
        # a constructor may take as long as it wants
        is_starting = self._report.phase == ReplicaPhase.STARTING
        asks = self._asks_main or not self._is_still()
        self._asks_main = False
        stack = "" if is_starting else self._watch.look(now, asks=asks)
        if stack and not self._report.stack:
            logger.warning("main_thread_stuck %s", stack)
        if not stack and not is_starting:
            stack = self._look_at_threads()
        if stack != self._report.stack:
            self._report = dataclasses.replace(self._report, stack=stack)

    def _look_at_lost_waits(self, now: float) -> None:
        is_at_work = self._ward.ongoing > 0 or self._report.phase != ReplicaPhase.RUNNING
        lost = self._lost_waits.look(now, is_at_work=is_at_work)
        if lost is not None:
            logger.error("wait_lost_in_fork %s\n%s", lost.verdict, lost.stack)
            self._report = dataclasses.replace(self._report, lost_wait=lost.verdict, stack=lost.stack)

    def _look_at_threads(self) -> str:
        stack = self._threads.stuck(STUCK_AFTER_S)
        if bool(stack) != self._are_threads_stuck:
            self._are_threads_stuck = bool(stack)
            self._in_main(self._ward.hold, self._are_threads_stuck)
        if stack and not self._report.stack:
            logger.warning("sync_threads_stuck %s", stack)
        return stack
