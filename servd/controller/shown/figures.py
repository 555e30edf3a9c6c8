"""Figures of the instance, from the facts and from what replicas tell of themselves. Nobody is asked for them."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import field, replace

from servd.controller.plan.facts import DeploymentFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.targets import wanted_count
from servd.controller.shown.status import epoch_of
from servd.documents.controller_views import ScalingView
from servd.documents.figure_views import (
    HISTORY_S,
    DeploymentFigures,
    DeploymentHistory,
    Quantiles,
    ReplicaFigures,
    RequestFigures,
    Sample,
)
from servd.ground.clock import Clock
from servd.ground.ids import full_name_of
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import ROUTABLE
from servd.observability.figures import STEP_S, Ended, FiguresReport, Told, together
from servd.observability.latency_buckets import quantiles_ms

Key = tuple[str, str]
"""Application, bare name of the deployment."""

_SHARES = (0.5, 0.95, 0.99)


class FiguresDesk:
    """Keeps what replicas tell, and samples of the last minutes. Implements `figure_views.Figures`."""

    def __init__(self, observed: Observed, clock: Clock) -> None:
        self._observed = observed
        self._clock = clock
        self._told: dict[str, Told] = {}
        self._samples: dict[Key, deque[Sample]] = {}
        self._sample_at = clock.now() + STEP_S

    def __repr__(self) -> str:
        return f"FiguresDesk({len(self._told)} replicas, {len(self._samples)} deployments)"

    def heard(self, fact: ReplicaFact, report: FiguresReport) -> None:
        """A replica has told its figures."""
        now, told = self._clock.now(), self._told.get(report.replica_id)
        if told is None:
            self._told[report.replica_id] = Told(fact.app, fact.deployment, report, now)
        else:
            told.hear(report, now)

    def tend(self) -> None:
        """To be called every second: take a sample of each deployment every `STEP_S`, and forget what is gone."""
        now = self._clock.now()
        if now < self._sample_at:
            return
        # a pause of this process is none of the deployments'
        self._sample_at = max(self._sample_at + STEP_S, now)
        steps: dict[Key, list[Ended]] = {}
        for replica_id, told in list(self._told.items()):
            step = told.step()
            if step.requests:
                steps.setdefault((told.app, told.deployment), []).append(step)
            # requests of one that is gone are still those of the deployment
            if replica_id not in self._observed.replicas and not told.lately(now).requests:
                del self._told[replica_id]
        found = {one.key: one for one in self._states(None, None)}
        for key in self._samples.keys() - found.keys():
            del self._samples[key]
        for key, state in found.items():
            self._add(key, _sample(state, steps.get(key, ()), now))

    def _add(self, key: Key, sample: Sample) -> None:
        samples = self._samples.setdefault(key, deque())
        if not samples or replace(samples[-1], at=sample.at) != sample:
            samples.append(sample)
        # one from before the beginning holds at it
        while len(samples) > 1 and samples[1].at <= sample.at - HISTORY_S:
            samples.popleft()

    def at(self) -> float:
        """Now: wall time, seconds."""
        now = self._clock.now()
        # never later: who asks for what came since would miss what is told in that rest of a millisecond
        return math.floor((self._epoch(now) + now) * 1000) / 1000

    def _epoch(self, now: float) -> float:
        observed = self._observed
        observed.epoch = epoch_of(observed.epoch, self._clock.wall_time(), now)
        return observed.epoch

    def history(
        self, app: str | None = None, name: str | None = None, since: float = 0.0
    ) -> dict[str, DeploymentHistory]:
        """Full name -> its samples later than `since`."""
        now = self._clock.now()
        # kept by the clock that nobody sets, shown by the one that people read
        epoch = self._epoch(now)
        found = {}
        for key, samples in self._samples.items():
            if app in (None, key[0]) and name in (None, key[1]):
                later = (one for one in samples if epoch + one.at > since)
                shown = [replace(one, at=round(epoch + max(one.at, now - HISTORY_S), 3)) for one in later]
                found[full_name_of(*key)] = DeploymentHistory(*key, shown)
        return found

    def deployments(self, app: str | None = None, name: str | None = None) -> dict[str, DeploymentFigures]:
        """Full name -> its figures now."""
        now, gone = self._clock.now(), self._gone()
        return {
            full_name_of(*one.key): self._figures(one, gone.get(one.key, ()), now) for one in self._states(app, name)
        }

    def _gone(self) -> dict[Key, list[Told]]:
        """Replicas that were there a moment ago."""
        found: dict[Key, list[Told]] = {}
        for replica_id in self._told.keys() - self._observed.replicas.keys():
            told = self._told[replica_id]
            found.setdefault((told.app, told.deployment), []).append(told)
        return found

    def _figures(self, state: "_State", gone: Iterable[Told], now: float) -> DeploymentFigures:
        ended = {one.replica_id: self._lately(one.replica_id, now) for one in state.replicas}
        counting = [*(one for one in ended.values() if one is not None), *(one.lately(now) for one in gone)]
        whole, per_s, _ = together(counting)
        calls = _calls(state.ongoing, state.waiting, whole if counting or not ended else None)
        return DeploymentFigures(
            *state.key,
            wanted=state.wanted,
            running=state.running,
            restarts=state.fact.restarts if state.fact is not None else 0,
            calls=replace(calls, requests_per_s=round(per_s, 3)) if calls.requests is not None else calls,
            memory_bytes=state.memory_bytes,
            cpu_share=state.cpu_share,
            decision=self._decision(state.fact),
            replicas={one.replica_id: self._replica(one, ended[one.replica_id], now) for one in state.replicas},
        )

    def _decision(self, fact: DeploymentFact | None) -> ScalingView | None:
        if fact is None or not fact.decisions:
            return None
        last = fact.decisions[-1]
        return ScalingView(round(self._observed.epoch + last.at, 3), last.before, last.after, last.reason)

    def _lately(self, replica_id: str, now: float) -> Ended | None:
        told = self._told.get(replica_id)
        return told.lately(now) if told is not None and told.latest.requests is not None else None

    def _replica(self, fact: ReplicaFact, ended: Ended | None, now: float) -> ReplicaFigures:
        told = self._told.get(fact.replica_id)
        latest = told.latest if told is not None else None
        return ReplicaFigures(
            state=fact.state,
            pid=fact.pid or None,
            age_s=round(max(now - fact.created_at, 0.0), 1),
            calls=_calls(fact.ongoing, latest.waiting if latest else 0, ended),
            # where nobody could look, it said 0
            memory_bytes=(latest.memory_bytes or None) if latest else None,
            cpu_share=latest.cpu_share if latest else None,
            descriptors=(latest.descriptors or None) if latest else None,
            threads=(latest.threads or None) if latest else None,
        )

    def _states(self, app: str | None, name: str | None) -> Iterator["_State"]:
        observed = self._observed
        lines: dict[str, int] = {}
        for (_, full_name), waiting in observed.queued.items():
            lines[full_name] = lines.get(full_name, 0) + waiting
        for key in {**observed.deployments, **dict.fromkeys(observed.replicas.deployments())}:
            if app not in (None, key[0]) or name not in (None, key[1]):
                continue
            fact, target = observed.deployments.get(key), observed.targets.get(key)
            replicas = observed.replicas_of(*key)
            told = [self._told[one.replica_id] for one in replicas if one.replica_id in self._told]
            yield _State(
                key=key,
                fact=fact,
                replicas=replicas,
                wanted=wanted_count(target, fact) if target is not None else 0,
                running=sum(one.state in ROUTABLE for one in replicas),
                ongoing=sum(one.ongoing for one in replicas),
                waiting=lines.get(full_name_of(*key), 0) + sum(one.latest.waiting for one in told),
                memory_bytes=sum(one.latest.memory_bytes for one in told),
                cpu_share=round(math.fsum(one.latest.cpu_share for one in told), 3),
            )


@dataclass(frozen=True, slots=True)
class _State:
    """A deployment as it is now."""

    key: Key
    fact: DeploymentFact | None
    wanted: int
    running: int
    ongoing: int
    waiting: int
    memory_bytes: int
    cpu_share: float
    replicas: list[ReplicaFact] = field(default_factory=list)


def _quantiles(ended: Ended) -> Quantiles:
    median, high, highest = quantiles_ms(ended.latencies, _SHARES)
    return median, high, highest


def _calls(ongoing: int, waiting: int, ended: Ended | None) -> RequestFigures:
    if ended is None:
        return RequestFigures(ongoing, waiting)
    return RequestFigures(ongoing, waiting, ended.requests, ended.errors, round(ended.per_s, 3), _quantiles(ended))


def _sample(state: _State, steps: Iterable[Ended], at: float) -> Sample:
    whole, per_s, errors_per_s = together(steps)
    return Sample(
        at,
        round(per_s, 3),
        round(errors_per_s, 3),
        _quantiles(whole),
        state.wanted,
        state.running,
        state.ongoing,
        state.waiting,
        state.memory_bytes,
        state.cpu_share,
    )
