"""Asks every process for its metrics, and remembers what the dead had counted, also over a restart of the controller."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from servd.controller.metric_sums import KEEP_S, MAX_DEAD, MetricSums, remains
from servd.exceptions import ProtocolError
from servd.ground.clock import Clock
from servd.ground.host_limits import told
from servd.ground.pidfd import start_ticks
from servd.ground.quick_dataclass import dataclass
from servd.observability.measures import LoopLag
from servd.wire.codec import decode_message, encode_message, register_message
from servd.wire.messages import Hello, MetricFamily, MetricsReport, MetricsWish

ANSWER_LIMIT_S = 1.0
"""A process that is stuck counts with what it said last."""

FILE_NAME = "metrics.state"
_LAG_PERIOD_S = 1.0
_UNBURIED = 16

logger = logging.getLogger(__name__)

_Who = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """What a process said last."""

    role: str
    id: str
    pid: int
    start_ticks: int
    families: tuple[MetricFamily, ...]


@dataclass(frozen=True, slots=True)
class DeadMetrics:
    """Series of a process that is gone. at: monotonic seconds at which that was noticed."""

    at: float
    families: tuple[MetricFamily, ...]


@dataclass(frozen=True, slots=True)
class MetricsState:
    """Everything that must survive the controller."""

    processes: tuple[ProcessMetrics, ...]
    dead: tuple[DeadMetrics, ...]
    dead_sum: tuple[MetricFamily, ...]


register_message(ProcessMetrics, DeadMetrics, MetricsState)


class MetricsDesk:
    """The metrics of the instance.

    Args:
        path: the file for the next controller.
        hellos: gives the greetings of all connected processes.
        send: sends a message to a process; False when it has no line.
        own: gives the controller's own families.
    """

    def __init__(
        self,
        path: str,
        clock: Clock,
        hellos: Callable[[], Iterable[Hello]],
        send: Callable[[str, str, Any], bool],
        own: Callable[[], Iterable[MetricFamily]],
    ) -> None:
        self._path = path
        self._clock = clock
        self._hellos = hellos
        self._send = send
        self._own = own
        self._lag = LoopLag(clock.now)
        self._number = 0
        self._asked: dict[_Who, asyncio.Future[None]] = {}
        self._collecting: asyncio.Task[MetricSums] | None = None
        state = _read(path)
        self._known = {(one.role, one.id): one for one in state.processes}
        self._bury_above = _UNBURIED
        self._dead = list(state.dead)
        self._dead_sum = MetricSums()
        self._dead_sum.add(state.dead_sum)

    def __repr__(self) -> str:
        return f"MetricsDesk({len(self._known)} processes, {len(self._dead)} dead)"

    async def watch_loop(self) -> None:
        """Measure the delay of this process's loop, for ever."""
        while True:
            due = self._clock.now() + _LAG_PERIOD_S
            await asyncio.sleep(_LAG_PERIOD_S)
            self._lag.note(max(self._clock.now() - due, 0.0))

    async def text(self, is_todays: bool = False) -> str:
        """All metrics as they are now, in Prometheus' text format; is_todays: as `MetricSums.text` has it."""
        # whoever asks while others wait gets the same answer
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.get_running_loop().create_task(self._collect())
        return (await asyncio.shield(self._collecting)).text(is_todays=is_todays)

    def heard(self, role: str, peer_id: str, report: MetricsReport) -> None:
        """A process has answered, or says its last words."""
        hello = next((one for one in self._hellos() if (one.role, one.id) == (role, peer_id)), None)
        if hello is not None:
            self._known[role, peer_id] = ProcessMetrics(
                role, peer_id, hello.pid, hello.start_ticks, tuple(report.families)
            )
            if len(self._known) > self._bury_above:
                # where nobody scrapes, the last words of the dead would pile up
                self._bury()
                self._bury_above = 2 * len(self._known) + _UNBURIED
        waiting = self._asked.get((role, peer_id))
        if waiting is not None and report.request_id == self._number and not waiting.done():
            waiting.set_result(None)

    async def _collect(self) -> MetricSums:
        self._number += 1
        loop = asyncio.get_running_loop()
        asked: dict[_Who, asyncio.Future[None]] = {}
        self._asked = asked
        for hello in self._hellos():
            who = (hello.role, hello.id)
            if self._send(*who, MetricsWish(self._number)):
                asked[who] = loop.create_future()
        if asked:
            _, silent = await asyncio.wait(asked.values(), timeout=ANSWER_LIMIT_S)
            if silent:
                logger.info("metrics_late processes=%s", [who for who, waiting in asked.items() if waiting in silent])
        self._bury()
        sums = MetricSums()
        sums.add(self._own())
        sums.add([self._lag.family(component="controller")])
        for process in self._known.values():
            sums.add(process.families)
        for gone in self._dead:
            sums.add(gone.families)
        sums.add(self._dead_sum.families())
        try:
            await asyncio.to_thread(_write, self._path, self._state())
        except RuntimeError as error:
            # no thread is left: only the next controller would need it
            logger.warning("metrics_not_kept reason=%s", told(error))
        return sums

    def _bury(self) -> None:
        now = self._clock.now()
        for who, process in list(self._known.items()):
            if _lives(process):
                continue
            del self._known[who]
            shared, own = remains(process.families)
            self._dead_sum.add(shared)
            if own:
                self._dead.append(DeadMetrics(now, own))
        # what was noticed in the future was noticed before the machine began anew
        self._dead = [gone for gone in self._dead if 0 <= now - gone.at < KEEP_S][-MAX_DEAD:]

    def _state(self) -> MetricsState:
        return MetricsState(tuple(self._known.values()), tuple(self._dead), self._dead_sum.families())


def _lives(process: ProcessMetrics) -> bool:
    try:
        return start_ticks(process.pid) == process.start_ticks
    except OSError:
        # no descriptor is left to look with: what a living one counted must not count twice
        return True


def _read(path: str) -> MetricsState:
    try:
        with open(path, "rb") as file:
            state = decode_message(file.read())
        if isinstance(state, MetricsState):
            return state
    except FileNotFoundError:
        pass
    except (OSError, ProtocolError) as error:
        # counters that begin anew are worth a line, no more
        logger.warning("metrics_forgotten reason=%s", error)
    return MetricsState((), (), ())


def _write(path: str, state: MetricsState) -> None:
    try:
        with open(f"{path}.new", "wb") as file:
            file.write(encode_message(state))
        os.replace(f"{path}.new", path)
    except OSError as error:
        logger.warning("metrics_not_kept reason=%s", error)
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")
