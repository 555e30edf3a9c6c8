"""News from the world, past tense. `Observed.apply(event, now)` turns them into facts.

Reports of processes are news as they are: `ReplicaReport`, `ProxyReport` and `PolicyAnswer`; so is the daemon's word that it
has become another edition, `facts.UpgradeFact`. What happens to processes is
told alike for all of them; kind is `messages.FORK_SERVER`, `REPLICA` or `PROXY`.
"""

import math
from dataclasses import fields
from operator import attrgetter
from typing import Any

from servd.controller.plan.facts import ReplicaFact, UpgradeFact
from servd.ground.edition import EXIT_OTHER_PROTOCOL, WAY_OUT
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import ROUTABLE, ReplicaPhase, ReplicaState
from servd.wire.build_messages import BuildResult
from servd.wire.messages import ProxyReport, ReplicaReport
from servd.wire.policy_messages import PolicyAnswer


@dataclass(frozen=True, slots=True)
class Started:
    """The process exists."""

    kind: str
    id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """No process could be made; for a fork server also: its environment could not. is_host_limit: the host gives no more.

    The rest is as of an `Exited`.
    """

    kind: str
    id: str
    error: str
    is_host_limit: bool = False
    exit_code: None = None
    log_lines: tuple[str, ...] = ()
    host_limit: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class StartLost:
    """The order came to nothing, and nobody is to blame.

    Its fork server was gone before it got it; or a controller gave it that died, and whether it was carried out is unknown.
    """

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone. exit_code None = unknown; negative = killed by that signal. log_lines: a replica's last ones.

    host_limit: which limit of the host it may have died of before it was ready, "" if none was reached. cause: why it was killed,
    "" = nobody knows.
    """

    kind: str
    id: str
    exit_code: int | None
    log_lines: tuple[str, ...] = ()
    host_limit: str = ""
    error: str = ""
    cause: str = ""

    @property
    def is_host_limit(self) -> bool:
        """Whether a limit of the host may be the reason."""
        return bool(self.host_limit)


@dataclass(frozen=True, slots=True)
class BuildFinished:
    """The fork server reported its build; comes again after each reconnect."""

    fork_server_id: str
    result: BuildResult


@dataclass(frozen=True, slots=True)
class QueueReported:
    """Requests waiting at one caller for one deployment (full name)."""

    caller_id: str
    deployment: str
    queued: int


Event = (
    Started
    | StartFailed
    | StartLost
    | Exited
    | BuildFinished
    | ReplicaReport
    | ProxyReport
    | QueueReported
    | PolicyAnswer
    | UpgradeFact
)


def exit_text(exit_code: int | None, cause: str = "") -> str:
    """How a process ended, in words, after "exited with"."""
    if cause:
        return f"{exit_text(exit_code)} ({cause})"
    if exit_code is None:
        return "an unknown status"
    if exit_code == EXIT_OTHER_PROTOCOL:
        return f"code {exit_code} (so ends what does not understand its daemon: were servd's files replaced? {WAY_OUT})"
    return f"signal {-exit_code}" if exit_code < 0 else f"code {exit_code}"


_NAMES = {field.name for field in fields(ReplicaFact)}
_TOLD = sorted({field.name for field in fields(ReplicaReport)} & _NAMES - {"replica_id", "error"})
_said = attrgetter(*_TOLD)
_planned = attrgetter(*sorted(_NAMES - {"reported_at", "ongoing"}))
_written = attrgetter(*sorted(_NAMES - {"reported_at", "ongoing", "memory_bytes"}))


def said(report: ReplicaReport) -> dict[str, Any]:
    """What a report says of its replica, by the names that the fact has for it; the error apart, which stays."""
    return dict(zip(_TOLD, _said(report), strict=True))


def state_after(fact: ReplicaFact, report: ReplicaReport) -> ReplicaState:
    """The state of a replica that says this."""
    if fact.state is ReplicaState.STOPPING:
        return fact.state
    if report.phase == ReplicaPhase.RUNNING:
        if report.applied == fact.config_version:
            return ReplicaState.RUNNING
        return ReplicaState.UPDATING if fact.state in (ReplicaState.RECOVERING, *ROUTABLE) else fact.state
    if report.phase == ReplicaPhase.DRAINING:
        return ReplicaState.STOPPING  # not by our order: somebody sent it SIGTERM
    if fact.state is ReplicaState.RECOVERING:
        came_up = report.phase in (ReplicaPhase.UPDATING, ReplicaPhase.FAILED)
        return ReplicaState.UPDATING if came_up else ReplicaState.STARTING
    return fact.state


def is_sign_of_life(report: ReplicaReport, fact: ReplicaFact) -> bool:
    """Whether a report of a replica that runs, as it did, says nothing that its fact does not know."""
    is_known = _said(report) == _said(fact) and report.error in ("", fact.error)
    return is_known and fact.ready_at < math.inf and fact.suspect_at == math.inf


def is_worth_a_plan(before: ReplicaFact, after: ReplicaFact, *, is_load_planned: bool) -> bool:
    """Whether a plan may differ. is_load_planned: an autoscaler goes by the load; nobody else does."""
    return _planned(before) != _planned(after) or (is_load_planned and before.ongoing != after.ongoing)


def is_worth_a_write(before: ReplicaFact, after: ReplicaFact) -> bool:
    """Whether the next controller must know: counts and signs of life it hears anew."""
    return _written(before) != _written(after)
