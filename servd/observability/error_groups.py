"""Errors of user code, put together by type and place: however often one happens, it is one thing to look at. Pure.

How this works: a replica counts its own groups, and says of each that changed how it is as a whole; so a report that comes
twice, or not at all, costs nothing. The book of the controller adds what is new in one, and keeps the groups that happened
last.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import field, replace

from servd.ground.quick_dataclass import dataclass
from servd.observability.failure import Failure
from servd.wire.codec import register_message

IDS_KEPT = 10
GROUPS_OF_REPLICA = 32
GROUPS_KEPT = 200
SAY_EVERY_S = 1.0
FAILURES_WAITING = 4096
"""Of more between two looks of the warden only the last count; a look every 0.25 s takes in 16000 a second."""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Errors of one type and place; id, text and the like as `Failure` has them, of the last one.

    first_at, last_at: seconds since the epoch; as a replica tells it first_at is that of the first that it counted, and stays.
    requests: (when, request id) of the last `IDS_KEPT`, oldest first. trace_ids: (request id, trace id) of those of them that are
    part of a trace.
    """

    id: str
    type: str
    place: str
    text: str
    traceback: str
    method: str
    route: str
    count: int
    first_at: float
    last_at: float
    requests: tuple[tuple[float, str], ...] = ()
    trace_ids: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorsReport:
    """Replica -> controller: groups of which it has not said yet how they are, each as a whole.

    Or a fork server, by its id: of a build that failed, and of a policy: behind a slash the deployment, "" for the application's.
    """

    replica_id: str
    groups: tuple[ErrorGroup, ...]


@dataclass(frozen=True, slots=True)
class KeptError:
    """A group over all replicas, dead ones included. deployment: bare name; "" of a build that failed, and of an
    application's policy.

    counted: living replica, or fork server, -> since when it counts, and what of its count is in the group's.
    """

    app: str
    deployment: str
    group: ErrorGroup
    counted: dict[str, tuple[float, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptErrors:
    """All that a book holds, oldest first."""

    errors: tuple[KeptError, ...]


register_message(ErrorGroup, ErrorsReport, KeptError, KeptErrors)


def group_of(failure: Failure) -> ErrorGroup:
    """One failure alone."""
    return ErrorGroup(
        failure.id,
        failure.type,
        failure.place,
        failure.text,
        failure.traceback,
        failure.method,
        failure.route,
        1,
        failure.at,
        failure.at,
        tuple((failure.at, request_id) for request_id in failure.request_ids[-IDS_KEPT:]),
        failure.trace_ids[-IDS_KEPT:],
    )


def _merged(old: ErrorGroup, new: ErrorGroup, count: int) -> ErrorGroup:
    """Both as one, the texts those of the later one."""
    latest = new if new.last_at >= old.last_at else old
    requests = sorted({*old.requests, *new.requests})[-IDS_KEPT:]
    kept = {request_id for _, request_id in requests}
    return replace(
        latest,
        count=count,
        first_at=min(old.first_at, new.first_at),
        last_at=latest.last_at,
        requests=tuple(requests),
        trace_ids=tuple(sorted(pair for pair in {*old.trace_ids, *new.trace_ids} if pair[0] in kept)),
    )


class ErrorGroups:
    """Of one replica: the `GROUPS_OF_REPLICA` that happened last. Any thread may `add`; the rest is for one alone, the warden."""

    def __init__(self, replica_id: str = "") -> None:
        self._replica_id = replica_id
        # no lock: the cycle collector, which runs wherever something is allocated, tells of tasks that nobody asked. So `add` may
        # begin in the midst of any of these methods, and of itself, in the same thread
        self._new: deque[Failure] = deque(maxlen=FAILURES_WAITING)
        self._groups: dict[str, ErrorGroup] = {}
        self._unsaid: set[str] = set()
        self._say_at = float("-inf")

    def __repr__(self) -> str:
        return f"ErrorGroups({len(self._groups)}, {len(self._unsaid)} unsaid, {len(self._new)} new)"

    def add(self, failure: Failure) -> None:
        """Count one more."""
        self._new.append(failure)

    @property
    def is_said(self) -> bool:
        """Whether the controller knows all of it."""
        return not self._unsaid and not self._new

    def forget_said(self) -> None:
        """Whoever was told is gone: all is to be said again."""
        self._unsaid = set(self._groups)
        self._say_at = float("-inf")

    def say(self, send: Callable[[ErrorsReport], bool], now: float, *, at_once: bool = False) -> None:
        """Take in what is new, and report what changed, every `SAY_EVERY_S` at most.

        To be called several times a second while there are errors. send: False if it could not be sent. now: monotonic seconds.
        """
        # those that come meanwhile wait for the next call
        for _ in range(len(self._new)):
            self._count(self._new.popleft())
        if not self._unsaid or (now < self._say_at and not at_once):
            return
        self._say_at = now + SAY_EVERY_S
        said, self._unsaid = self._unsaid, set()
        groups = tuple(group for group in self._groups.values() if group.id in said)
        if not send(ErrorsReport(self._replica_id, groups)):
            self._unsaid |= said

    def _count(self, failure: Failure) -> None:
        group, old = group_of(failure), self._groups.pop(failure.id, None)
        if old is not None:
            # by its begin the book knows one that was dropped meanwhile: no thread that is late, no clock that was set moves it
            group = replace(_merged(old, group, old.count + 1), first_at=old.first_at)
        self._groups[group.id] = group
        self._unsaid.add(group.id)
        if len(self._groups) > GROUPS_OF_REPLICA:
            oldest = next(iter(self._groups))
            del self._groups[oldest]
            self._unsaid.discard(oldest)


class ErrorBook:
    """Of the whole instance: the `GROUPS_KEPT` that happened last.

    Attributes:
        version: another one after each change.
        begun: another one after each group that was not there.
    """

    def __init__(self, kept: Iterable[KeptError] = ()) -> None:
        self._kept = {one.group.id: one for one in kept}
        self.version = self.begun = 0

    def __repr__(self) -> str:
        return f"ErrorBook({len(self._kept)})"

    def heard(self, app: str, deployment: str, report: ErrorsReport) -> None:
        """Take in what a replica of the deployment (bare name) reports."""
        for group in report.groups:
            kept = self._kept.pop(group.id, None)
            before = kept.counted if kept is not None else {}
            since, known = before.get(report.replica_id, (group.first_at, 0))
            # one that it had dropped meanwhile begins anew
            new = group.count - known if since == group.first_at and group.count >= known else group.count
            if new:
                self.version += 1
            if kept is None:
                self.begun += 1
            counted = {**before, report.replica_id: (group.first_at, group.count)}
            whole = group if kept is None else _merged(kept.group, group, kept.group.count + new)
            self._kept[group.id] = KeptError(app, deployment, whole, counted)
        for group_id in list(self._kept)[:-GROUPS_KEPT]:
            del self._kept[group_id]

    def forget_dead(self, living: Collection[str]) -> None:
        """Replicas that do not live any more report nothing: what they had counted stays in the sums alone."""
        for group_id, kept in self._kept.items():
            if kept.counted.keys() - living:
                counted = {one: count for one, count in kept.counted.items() if one in living}
                self._kept[group_id] = replace(kept, counted=counted)

    def all(self) -> tuple[KeptError, ...]:
        """Every group, the one that happened last first."""
        return tuple(sorted(self._kept.values(), key=lambda kept: kept.group.last_at, reverse=True))

    def get(self, group_id: str) -> KeptError | None:
        """The group of that id."""
        return self._kept.get(group_id)

    def content(self) -> KeptErrors:
        """All that the next book needs."""
        return KeptErrors(tuple(self._kept.values()))
