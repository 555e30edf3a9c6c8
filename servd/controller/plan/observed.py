"""The facts of this moment: intents recorded and news applied. No effects, no clock."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import field, replace
from typing import Any

from servd.controller.plan import events
from servd.controller.plan.autoscaler import Question, Samples
from servd.controller.plan.facts import (
    ApplicationFact,
    DataPlaneFact,
    DeadReplicaFact,
    DeploymentFact,
    Fact,
    ForkServerFact,
    ForkServerTable,
    ProxyFact,
    ReplicaFact,
    ReplicaTable,
    UpgradeFact,
    fact_key,
    restored,
)
from servd.controller.plan.restarts import EARLY_DEATH_S
from servd.controller.plan.targets import DeploymentTarget
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import ROUTABLE, ReplicaPhase, ReplicaState
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, ProxyReport, ReplicaReport, Routing
from servd.wire.policy_messages import PolicyAnswer

DEAD_KEPT = 5
UNHEALTHY_AFTER_FAILURES = 3
PROXY_DRAIN_S = 20.0
FAILED_EXIT_S = 10.0
"""How long a replica may take to end after its start failed."""


@dataclass(slots=True)
class Observed:
    """All facts, by id. `changed` collects the keys of facts that the fact store has not seen yet.

    edition: which servd the controller is, as `ground.edition` writes it; not stored.

    epoch: wall time minus monotonic time, seconds, as `status.epoch_of` gives it.
    targets: derived once per turn from the active builds, (app, bare name) -> target; not stored.
    """

    epoch: float = 0.0
    edition: str = ""
    upgrade: UpgradeFact | None = None
    applications: dict[str, ApplicationFact] = field(default_factory=dict)
    deployments: dict[tuple[str, str], DeploymentFact] = field(default_factory=dict)
    fork_servers: ForkServerTable = field(default_factory=ForkServerTable)
    replicas: ReplicaTable = field(default_factory=ReplicaTable)
    proxies: dict[str, ProxyFact] = field(default_factory=dict)
    data_plane: DataPlaneFact = field(default_factory=DataPlaneFact)
    targets: dict[tuple[str, str], DeploymentTarget] = field(default_factory=dict)
    resolved: dict[str, tuple[Any, tuple[DeploymentTarget, ...]]] = field(default_factory=dict)
    queued: dict[tuple[str, str], int] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    questions: dict[tuple[str, str], Question] = field(default_factory=dict)
    unready_since: dict[str, float] = field(default_factory=dict)
    slow_noted_at: dict[str, float] = field(default_factory=dict)
    published: Routing | None = None
    listeners: set[tuple[str, int]] = field(default_factory=set)
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    changed: dict[tuple[str, str], Fact | None] = field(default_factory=dict)

    def put(self, fact: Any) -> None:
        """Remember a fact, new or changed."""
        match fact:
            case ForkServerFact():
                self.fork_servers[fact.fork_server_id] = fact
            case ReplicaFact():
                self.replicas[fact.replica_id] = fact
            case DeploymentFact():
                self.deployments[(fact.app, fact.name)] = fact
            case ApplicationFact():
                self.applications[fact.name] = fact
            case ProxyFact():
                self.proxies[fact.proxy_id] = fact
            case DataPlaneFact():
                self.data_plane = fact
            case UpgradeFact():
                self.upgrade = fact
        self.changed[fact_key(fact)] = fact

    def forget(self, fact: Any) -> None:
        """Drop a fact: what it spoke of is gone."""
        match fact:
            case ForkServerFact():
                self.fork_servers.pop(fact.fork_server_id, None)
            case ReplicaFact():
                self.replicas.pop(fact.replica_id, None)
                self.samples.pop(fact.replica_id, None)
            case DeploymentFact():
                self.deployments.pop((fact.app, fact.name), None)
                self.questions.pop((fact.app, fact.name), None)
            case ApplicationFact():
                self.applications.pop(fact.name, None)
            case ProxyFact():
                self.proxies.pop(fact.proxy_id, None)
        self.changed[fact_key(fact)] = None

    def take_changes(self) -> dict[tuple[str, str], Fact | None]:
        """Facts that changed since the last call; None = forgotten."""
        changes, self.changed = self.changed, {}
        return changes

    @classmethod
    def restore(cls, facts: Iterable[Any], epoch: float, now: float) -> "Observed":
        """Facts of an earlier controller, as `facts.restored` has them."""
        observed = cls(epoch=epoch)
        for fact in facts:
            if isinstance(fact, ProxyFact):
                observed.listeners.add((fact.host, fact.port))
            observed.put(restored(fact, now))
        return observed

    def replicas_of(self, app: str, deployment: str) -> list[ReplicaFact]:
        """Replicas of one deployment, any state, oldest first."""
        return self.replicas.of(app, deployment)

    def preload_key(self, target: DeploymentTarget) -> str:
        """What the instance of its template is, "" if that constructs none."""
        fact = self.deployments.get((target.id.app, target.id.name))
        return target.preload_key("" if fact is None else fact.unfit_version)

    def served_by(self, server: ForkServerFact) -> list[DeploymentTarget]:
        """Known deployments whose replicas a template forks."""
        key = (server.app, server.env_key, server.preload_key)
        found = (t for place, t in self.targets.items() if place in self.deployments)
        return [t for t in found if (t.id.app, t.env_key, self.preload_key(t)) == key]

    def count_failed_template(
        self, served: Iterable[DeploymentTarget], error: str, now: float, *, is_host_limit: bool = False
    ) -> None:
        """A template did not come up: a failed start of each deployment that waits for it."""
        for target in served:
            fact = self.deployments[(target.id.app, target.id.name)]
            failed = fact.after_failed_start(error, now, is_host_limit=is_host_limit)
            self.put(replace(failed, template_error=error))

    def waiting(self, deployment: str) -> int:
        """Most requests that wait at any one caller for a deployment (full name)."""
        return max((line for (_, name), line in self.queued.items() if name == deployment), default=0)

    def change(self, fact: Any, **fields: Any) -> None:
        """Put a fact with these fields changed; nothing happens if there is none."""
        if fact is not None:
            self.put(replace(fact, **fields))

    def apply(self, event: events.Event, now: float) -> bool:
        """Turn one piece of news into facts. News of something unknown, repeated or late, changes nothing.

        Gives whether there may be something to plan: a mere sign of life only puts off when its sender counts as silent.
        """
        match event:
            case ReplicaReport():
                return self._replica_reported(event, now)
            case ProxyReport():
                return self._proxy_reported(event, now)
            case events.Started():
                self._started(event, now)
            case events.StartFailed():
                self._gone(event, event.error, now)
            case events.StartLost():
                self._forget_start(event.kind, event.id)
            case events.Exited():
                self._gone(event, f"exited with {events.exit_text(event.exit_code, event.cause)}", now)
            case events.BuildFinished():
                fact = self.fork_servers.get(event.fork_server_id)
                if fact is not None and fact.result is None:
                    self.put(replace(fact, result=event.result))
            case UpgradeFact():
                if self.upgrade is None or not self.upgrade.says(event):
                    self.put(event)
            case PolicyAnswer():
                asked = [key for key, one in self.questions.items() if one.ask_id == event.ask_id]
                is_moved = [self._policy_answered(key, event, now) for key in asked]
                return any(is_moved)
            case events.QueueReported():
                self.queued[(event.caller_id, event.deployment)] = event.queued
                if not event.queued:
                    del self.queued[(event.caller_id, event.deployment)]
                full_name = event.deployment
                self._sample(
                    [r for r in self.replicas.values() if r.state in ROUTABLE and r.full_name == full_name], now
                )
        return True

    def _policy_answered(self, key: tuple[str, str], answer: PolicyAnswer, now: float) -> bool:
        question = self.questions[key] = replace(self.questions[key], ask_id="", silent_since=math.inf)
        fact, target = self.deployments.get(key), self.targets.get(key)
        if fact is None or target is None or target.autoscaling is None:
            return True
        policy = fact.policy.answered(answer, fact.name, now)
        if policy == fact.policy:
            return now >= question.next_at(target.autoscaling)
        self.put(replace(fact, policy=policy))
        return True

    def _started(self, event: events.Started, now: float) -> None:
        about: dict[str, Any] = {"pid": event.pid, "start_ticks": event.start_ticks}
        if event.kind == REPLICA:
            child = self.replicas.get(event.id)
            if child is not None and not child.pid:
                self.put(replace(child, **about, state_since=now))
        else:
            self.change((self.proxies if event.kind == PROXY else self.fork_servers).get(event.id), **about)

    def _forget_start(self, kind: str, identifier: str) -> None:
        known: dict[str, dict[str, Any]] = {FORK_SERVER: self.fork_servers, REPLICA: self.replicas, PROXY: self.proxies}
        fact = known[kind].get(identifier)
        if fact is not None:
            self.forget(fact)

    def _gone(self, event: events.StartFailed | events.Exited, error: str, now: float) -> None:
        if event.kind == PROXY:
            self._proxy_gone(event.id, error, now)
        elif event.kind == FORK_SERVER:
            self._fork_server_gone(event.id, error, now, event.is_host_limit)
        else:
            self._replica_gone(event, now)

    def _fork_server_gone(self, fork_server_id: str, error: str, now: float, is_host_limit: bool) -> None:
        fact = self.fork_servers.get(fork_server_id)
        if fact is None:
            return
        self.forget(fact)
        app = self.applications.get(fact.app)
        if fact.result is not None or fact.stopping or app is None:
            return
        if fact.is_builder:
            self._build_died(app, fact, error)
        else:
            text = f"the template process {error} before it was ready"
            self.count_failed_template(self.served_by(fact), text, now, is_host_limit=is_host_limit)

    def _build_died(self, app: ApplicationFact, fact: ForkServerFact, error: str) -> None:
        if app.deleting or fact.deploy_id != app.goal.deploy_id or app.built_deploy_id >= fact.deploy_id:
            return
        attempts = app.build_attempts + 1
        if attempts < 3:
            self.put(replace(app, build_attempts=attempts))
            return
        message = f"Deploying application {app.name} failed: its build process {error}, {attempts} times in a row"
        failed = replace(app, build_attempts=attempts, built_deploy_id=fact.deploy_id, settled="DEPLOY_FAILED")
        self.put(replace(failed, message=message))

    def _replica_reported(self, report: ReplicaReport, now: float) -> bool:
        fact = self.replicas.get(report.replica_id)
        if fact is None:
            return False
        state = events.state_after(fact, report)
        if state is fact.state and report.phase == ReplicaPhase.RUNNING and events.is_sign_of_life(report, fact):
            self.replicas[report.replica_id] = replace(fact, reported_at=now)
            return False
        if state is not fact.state:
            fact = replace(fact, state=state, state_since=now)
        if state is ReplicaState.RUNNING and fact.ready_at == math.inf:
            fact = replace(fact, ready_at=now)
        if fact.state is ReplicaState.STARTING and report.error and not fact.error:
            fact = replace(fact, error=report.error)
        about = events.said(report)
        updated = replace(fact, **about, error=report.error or fact.error, reported_at=now, suspect_at=math.inf)
        before = self.replicas[report.replica_id]
        if events.is_worth_a_write(before, updated):
            self.put(updated)
        else:
            self.replicas[report.replica_id] = updated
        if updated.state in ROUTABLE:
            # one more shares what waits, if anything does
            is_new = before.state not in ROUTABLE and self.waiting(fact.full_name)
            all_of_it = self.replicas_of(fact.app, fact.deployment) if is_new else [updated]
            self._sample([replica for replica in all_of_it if replica.state in ROUTABLE], now)
        self._judge(before, updated, report, now)
        target = self.targets.get(fact.key)
        is_load_planned = target is None or target.follows_load
        return events.is_worth_a_plan(before, self.replicas[report.replica_id], is_load_planned=is_load_planned)

    def _sample(self, replicas: list[ReplicaFact], now: float) -> None:
        """Note the load of some replicas of one deployment."""
        if not replicas:
            return
        target = self.targets.get(replicas[0].key)
        autoscaling = target.autoscaling if target is not None else None
        keep_s = autoscaling["look_back_period_s"] if autoscaling else 0.0
        share = self._share_of_line(replicas[0])
        for fact in replicas:
            self.samples.setdefault(fact.replica_id, Samples()).add(now, fact.ongoing + share, keep_s)

    def _share_of_line(self, fact: ReplicaFact) -> float:
        # requests wait at their callers, for whichever replica is free first: each replica has an equal part of them
        waiting = sum(line for (_, name), line in self.queued.items() if name == fact.full_name)
        if not waiting:
            return 0.0
        return waiting / max(1, sum(r.state in ROUTABLE for r in self.replicas_of(fact.app, fact.deployment)))

    def _judge(self, before: ReplicaFact, fact: ReplicaFact, report: ReplicaReport, now: float) -> None:
        """A failed start or reconfigure is counted; too many failed checks make the deployment UNHEALTHY."""
        if fact.state is ReplicaState.STOPPING:
            if before.state is not ReplicaState.STOPPING:
                self.put(replace(fact, stop_reason="told to stop by a signal"))
            return
        if report.phase == ReplicaPhase.FAILED and fact.state in (ReplicaState.STARTING, *ROUTABLE):
            # one that failed to start ends by itself; one that failed to reconfigure is drained: it has requests
            is_start = fact.state is ReplicaState.STARTING
            self.put(
                replace(
                    fact,
                    state=ReplicaState.STOPPING,
                    state_since=now,
                    kill_at=now + FAILED_EXIT_S if is_start else math.inf,
                    stop_reason=report.error if is_start else "reconfigure failed",
                )
            )
            self._count_failure(fact, report.error, now)
        elif report.health_failures >= UNHEALTHY_AFTER_FAILURES > before.health_failures:
            self.put(replace(fact, state=ReplicaState.STOPPING, state_since=now, kill_at=now, stop_reason="unhealthy"))
            self.blame(fact, f"replica {fact.replica_id} failed its health check: {report.health_message}")

    def _replica_gone(self, event: events.StartFailed | events.Exited, now: float) -> None:
        fact = self.replicas.get(replica_id := event.id)
        if fact is None:
            return
        self.forget(fact)
        ended = events.exit_text(event.exit_code, event.cause)
        reason = fact.stop_reason or event.error or fact.error or f"exited with {ended}"
        about = (event.exit_code, now - fact.created_at, reason, fact.ongoing, event.log_lines, fact.stack)
        dead = DeadReplicaFact(replica_id, fact.pid, *about, fact.actor_id, fact.worker_id, fact.created_at)
        deployment = self.deployments.get(fact.key)
        if deployment is not None:
            self.put(replace(deployment, dead=(*deployment.dead, dead)[-DEAD_KEPT:]))
        if fact.state is ReplicaState.STARTING:
            text = fact.error or event.error or f"the replica process exited with {ended} before it was ready"
            text = f"{text}: {event.host_limit}" if event.host_limit else text
            self._count_failure(fact, text, now, is_host_limit=event.is_host_limit)
        elif fact.state is not ReplicaState.STOPPING:
            text = f"replica {replica_id} exited with {ended}"
            served_s = now - fact.ready_at
            if served_s < EARLY_DEATH_S:
                self._count_failure(fact, f"{text} {served_s:.1f} s after it was ready", now, is_early_death=True)
            self.blame(fact, text)

    def _count_failure(
        self, fact: ReplicaFact, error: str, now: float, *, is_early_death: bool = False, is_host_limit: bool = False
    ) -> None:
        deployment = self.deployments.get(fact.key)
        target = self.targets.get(fact.key)
        if deployment is None or (target is not None and target.version != fact.version):
            return
        failed = deployment.after_failed_start(error, now, is_host_limit=is_host_limit)
        self.put(replace(failed, died_early_at=now) if is_early_death else failed)

    def blame(self, fact: ReplicaFact, message: str) -> None:
        """Count a replica that failed while it served, and make the deployment UNHEALTHY if it was of the target version."""
        deployment = self.deployments.get(fact.key)
        target = self.targets.get(fact.key)
        if deployment is None:
            return
        deployment = replace(deployment, restarts=deployment.restarts + 1)
        if target is not None and target.version != fact.version:
            self.put(deployment)
            return
        text = f"{message}. It stays UNHEALTHY until the replica is replaced or the deployment is deployed again."
        self.put(replace(deployment, trouble=text, trigger="REPLICA_FAILED"))

    def _proxy_reported(self, report: ProxyReport, now: float) -> bool:
        before = fact = self.proxies.get(report.proxy_id)
        if fact is None:
            return False
        if fact.listening and not report.listening and not fact.draining:
            # not by our order: somebody sent it SIGTERM
            fact = replace(fact, draining=True, kill_at=now + PROXY_DRAIN_S + 1.0)
            self.put(fact)
        updated = replace(fact, listening=report.listening, connections=report.connections, trouble=report.trouble)
        updated = replace(updated, reported_at=now, suspect_at=math.inf, has_served=fact.has_served or report.listening)
        if report.listening and not fact.listening:
            self.put(updated)
            self.put(replace(self.data_plane, proxy_failures=0, proxy_error=""))
        else:
            self.proxies[fact.proxy_id] = updated  # a sign of life is not worth a write
        return replace(updated, reported_at=fact.reported_at) != before

    def _proxy_gone(self, proxy_id: str, error: str, now: float) -> None:
        fact = self.proxies.get(proxy_id)
        if fact is None:
            return
        self.forget(fact)
        if not fact.draining and not fact.has_served:
            # one that served is replaced at once; one that never listened makes the next one wait
            failures = self.data_plane.proxy_failures + 1
            self.put(replace(self.data_plane, proxy_failures=failures, proxy_failed_at=now, proxy_error=error))
