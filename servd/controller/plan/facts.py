"""Facts about the world, one frozen value each. The fact store keeps them over a restart of the controller.

A fact says what was ordered and what was heard; statuses are computed from facts and never stored.
"""

import math
from collections.abc import KeysView
from dataclasses import field, replace
from typing import Any

from servd.controller.plan.autoscaler import DECISIONS_KEPT, PolicyFact
from servd.controller.plan.goal import ApplicationGoal, HttpGoal
from servd.controller.plan.resources import Held
from servd.ground.grouped import GroupedDict
from servd.ground.ids import full_name_of
from servd.ground.quick_dataclass import dataclass
from servd.ground.states import ROUTABLE, ReplicaState, UpgradeStage
from servd.wire.build_messages import BuildOrder, BuildResult
from servd.wire.codec import register_message
from servd.wire.messages import ReplicaStart


@dataclass(frozen=True, slots=True)
class ForkServerFact:
    """A fork server. is_builder: it was started to build `deploy_id`; else it is a further template with its own environment.

    template_version: code version whose replicas it forks, "" while unknown. env_key: digest of its runtime environment.
    mute_children: a child of it said nothing after the fork, so its replicas are spawned from now on. preload_key: which
    deployment's instance it constructs, see `DeploymentTarget.preload_key`. edition: which servd it is, "" if nobody noted it.
    is_deaf: it lives, but carries out no order: another takes its place.
    """

    fork_server_id: str
    app: str
    deploy_id: int
    is_builder: bool
    env_key: str
    order: BuildOrder
    created_at: float
    template_version: str = ""
    pid: int = 0
    start_ticks: int = 0
    result: BuildResult | None = None
    stopping: bool = False
    mute_children: bool = False
    preload_key: str = ""
    edition: str = ""
    is_deaf: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaFact:
    """A replica process, from its order to its exit.

    start.goal is the goal last sent. kill_at: when a draining one is killed (inf = not draining). outgrown: why it shall be
    replaced though its version is right, "" if it shall not. was_forked: not spawned. ready_at: when it was RUNNING for the
    first time (inf = not yet). lost_wait: why a thread of it can never go on, "" if all may. docs_path: of the documentation that
    its instance serves, "" while it has named none. Times are monotonic seconds.
    """

    replica_id: str
    app: str
    deployment: str
    version: str
    fork_server_id: str
    start: ReplicaStart
    actor_id: str
    worker_id: str
    created_at: float
    state: ReplicaState = ReplicaState.STARTING
    state_since: float = 0.0
    pid: int = 0
    start_ticks: int = 0
    drain_sent: bool = False
    kill_at: float = float("inf")
    killed_at: float = float("-inf")
    stop_reason: str = ""
    error: str = ""
    ongoing: int = 0
    health_failures: int = 0
    health_message: str = ""
    model_ids: tuple[str, ...] = ()
    stack: str = ""
    cpus: float = 0.0
    gpu_share: float = 0.0
    reported_at: float = float("-inf")
    suspect_at: float = float("inf")
    devices: tuple[int, ...] = ()
    memory_bytes: int = 0
    outgrown: str = ""
    was_forked: bool = False
    lost_wait: str = ""
    ready_at: float = float("inf")
    docs_path: str = ""
    edition: str = ""

    @property
    def held(self) -> Held:
        """What it holds of the host's pool, until it is gone."""
        return Held(self.cpus, self.gpu_share, tuple(self.devices))

    @property
    def key(self) -> tuple[str, str]:
        """(application, bare deployment name)."""
        return (self.app, self.deployment)

    @property
    def full_name(self) -> str:
        """Full name of its deployment."""
        return full_name_of(self.app, self.deployment)

    @property
    def config_version(self) -> str:
        """The config version it was last told to take."""
        return self.start.goal.config_version


class ReplicaTable(GroupedDict[ReplicaFact, tuple[str, str]]):
    """Replica id -> fact, oldest first. A turn asks for the replicas of each deployment several times."""

    def __init__(self) -> None:
        super().__init__(lambda fact: fact.key)

    def of(self, app: str, deployment: str) -> list[ReplicaFact]:
        """Replicas of one deployment (bare name), any state, oldest first."""
        return self.in_group((app, deployment))

    def deployments(self) -> KeysView[tuple[str, str]]:
        """(application, bare deployment name) of each that has a replica."""
        return self._groups.keys()


class ForkServerTable(GroupedDict[ForkServerFact, str]):
    """Fork server id -> fact, oldest first; `in_group` gives those of an application."""

    def __init__(self) -> None:
        super().__init__(lambda fact: fact.app)


@dataclass(frozen=True, slots=True)
class DeadReplicaFact:
    """A replica that is gone, for the post-mortem list. stack: of its main thread, if that was stuck. created_at: monotonic
    seconds."""

    replica_id: str
    pid: int
    exit_code: int | None
    age_s: float
    reason: str
    ongoing: int
    log_lines: tuple[str, ...] = ()
    stack: str = ""
    actor_id: str = ""
    worker_id: str = ""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ScalingFact:
    """One decision of the autoscaler. at: monotonic seconds; before, after: replicas."""

    at: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class DeploymentFact:
    """What is remembered of one deployment between turns.

    target_key: digest of the target that the counters belong to. trouble: why it is UNHEALTHY, "" if it is not. desired:
    replica count that the autoscaler decided, None before the first decision and at a capacity of 0. lean / lean_since:
    direction (-1, 0, 1) in which the autoscaler leans, and since when. outgrown_at: when a replica was last found to use more
    memory than it may. failed_starts: starts that failed since the target came or was reached last, deaths soon after a start
    included; died_early_at: the last one of those. failures: as many of them as the pause until the next try follows from.
    is_judged: so many failed that it is UNHEALTHY for them. is_stalled: some of the new replicas had come up then, beside older
    ones: no further one takes the place of an older one. unfit_version / unfit_reason: version whose preloaded instance cannot
    be forked, and why. spawned_version / spawned_reason: version whose replicas are spawned because a forked one waited for a
    thread that the fork had left behind, and which that was. template_error: why the last fork server or template of its did
    not come up, "" once one stands ready. is_host_limit: the last start failed because the host gave no more. decisions: the
    autoscaler's last ones, oldest first. restarts: how many of its replicas died or had to be ended. scaled_up_at,
    scaled_down_at: the autoscaler's last decision of that direction, monotonic seconds.
    """

    app: str
    name: str
    target_key: str
    failures: int = 0
    failed_at: float = float("-inf")
    last_error: str = ""
    trouble: str = ""
    trigger: str = "CONFIG_UPDATE_STARTED"
    desired: int | None = None
    lean: int = 0
    lean_since: float = 0.0
    reason: str = ""
    dead: tuple[DeadReplicaFact, ...] = ()
    outgrown_at: float = float("-inf")
    died_early_at: float = float("-inf")
    failed_starts: int = 0
    is_judged: bool = False
    is_stalled: bool = False
    unfit_version: str = ""
    unfit_reason: str = ""
    spawned_version: str = ""
    spawned_reason: str = ""
    template_error: str = ""
    is_host_limit: bool = False
    decisions: tuple[ScalingFact, ...] = ()
    restarts: int = 0
    policy: PolicyFact = PolicyFact()
    scaled_up_at: float = float("-inf")
    scaled_down_at: float = float("-inf")

    def after_failed_start(self, error: str, now: float, *, is_host_limit: bool = False) -> "DeploymentFact":
        """With one failed start more; error: its reason, for people."""
        last: dict[str, Any] = {"failed_at": now, "last_error": error, "is_host_limit": is_host_limit}
        return replace(self, failures=self.failures + 1, failed_starts=self.failed_starts + 1, **last)

    def after_decision(self, now: float, before: int, after: int) -> "DeploymentFact":
        """With a decision of the autoscaler more, for the reason that it has; itself if the count stays. See `ScalingFact`."""
        if before == after:
            return self
        decision = ScalingFact(now, before, after, self.reason)
        decided = replace(self, trigger="AUTOSCALING", decisions=(*self.decisions, decision)[-DECISIONS_KEPT:])
        return replace(decided, scaled_up_at=now) if after > before else replace(decided, scaled_down_at=now)

    def without_failures(self) -> "DeploymentFact":
        """As if no start had failed yet; trouble stays."""
        return replace(
            self,
            failures=0,
            failed_starts=0,
            failed_at=-math.inf,
            last_error="",
            died_early_at=-math.inf,
            is_judged=False,
            is_stalled=False,
            template_error="",
            is_host_limit=False,
        )


@dataclass(frozen=True, slots=True)
class ApplicationFact:
    """An application from its first PUT until its last process is gone.

    goal: the latest wish. built_deploy_id: last deploy whose build ended. active: build that serves, with the wish it was
    built for. last_ingress: ingress of the build before, "" if there was none or it is the same. settled: "" while DEPLOYING,
    else RUNNING or DEPLOY_FAILED (sticky), with its message. build_retries: how often its build was begun again after it failed;
    build_retry_at: when that happens next, monotonic seconds (inf = never).
    """

    name: str
    ordinal: int
    goal: ApplicationGoal
    built_deploy_id: int = 0
    build_attempts: int = 0
    active: BuildResult | None = None
    active_goal: ApplicationGoal | None = None
    code_version: str = ""
    last_ingress: str = ""
    settled: str = ""
    message: str = ""
    deleting: bool = False
    build_retries: int = 0
    build_retry_at: float = float("inf")


@dataclass(frozen=True, slots=True)
class ProxyFact:
    """A proxy process. has_served: it has listened, perhaps under an earlier controller; `listening` is what this one heard.
    slots: those of others whose connections it was told to accept. trouble: why new clients wait there, "" while they do not.
    """

    proxy_id: str
    slot: int
    host: str
    port: int
    root_path: str
    token: str
    actor_id: str
    worker_id: str
    created_at: float
    pid: int = 0
    start_ticks: int = 0
    listening: bool = False
    reported_at: float = float("-inf")
    connections: int = 0
    suspect_at: float = float("inf")
    draining: bool = False
    kill_at: float = float("inf")
    killed_at: float = float("-inf")
    has_served: bool = False
    slots: tuple[int, ...] = ()
    trouble: str = ""
    edition: str = ""
    grpc_port: int = 0
    keep_alive_timeout_s: float = 0.0
    tls_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataPlaneFact:
    """http: options in force, None = closed. running: Serve ran when they were set. restored: application -> deploy of
    it that the daemon found in its goal when it started.

    The rest are failures of proxy starts, for their back-off.
    """

    http: HttpGoal | None = None
    running: bool = False
    restored: dict[str, int] = field(default_factory=dict)
    proxy_failures: int = 0
    proxy_failed_at: float = float("-inf")
    proxy_error: str = ""


@dataclass(frozen=True, slots=True)
class UpgradeFact:
    """The daemon has become another edition of servd, or could not; also the news of it, as the daemon tells it.

    edition, before: what it became, or should have, and what it was. stage: an `UpgradeStage`. message: why it failed.
    """

    edition: str
    before: str
    stage: str = UpgradeStage.PROXIES.value
    message: str = ""

    @property
    def is_over(self) -> bool:
        """Nothing is to be replaced any more."""
        return self.stage in (UpgradeStage.DONE, UpgradeStage.FAILED)

    def says(self, news: "UpgradeFact") -> bool:
        """Whether that news tells nothing beyond it: the daemon tells it to each of its controllers."""
        has_failed = UpgradeStage.FAILED in (self.stage, news.stage)
        is_same = (self.edition, self.before) == (news.edition, news.before)
        return self == news if has_failed else is_same


Fact = ForkServerFact | ReplicaFact | DeploymentFact | ApplicationFact | ProxyFact | DataPlaneFact | UpgradeFact

register_message(
    ForkServerFact, ReplicaFact, DeadReplicaFact, DeploymentFact, ApplicationFact, ProxyFact, DataPlaneFact,
    UpgradeFact, ScalingFact,
)  # fmt: skip


def fact_key(fact: Any) -> tuple[str, str]:
    """(kind, key) under which the fact store keeps it."""
    match fact:
        case ForkServerFact():
            return "fork_server", fact.fork_server_id
        case ReplicaFact():
            return "replica", fact.replica_id + "/" + fact.actor_id
        case DeploymentFact():
            return "deployment", f"{fact.app}/{fact.name}"
        case ApplicationFact():
            return "application", fact.name
        case ProxyFact():
            return "proxy", fact.proxy_id
        case UpgradeFact():
            return "upgrade", ""
        case _:
            return "data_plane", ""


def restored(fact: Any, now: float) -> Any:
    """A fact of an earlier controller as its successor begins with it, at `now` (monotonic seconds).

    Replicas that served are RECOVERING until they report; a start stays a start.
    """
    match fact:
        case ReplicaFact():
            state = ReplicaState(fact.state)
            fact = replace(fact, state=state, state_since=now, killed_at=-math.inf, suspect_at=math.inf)
            return replace(fact, state=ReplicaState.RECOVERING, reported_at=now) if state in ROUTABLE else fact
        case DeploymentFact():
            # counters, back-off and the autoscaler's lean begin anew (runtime.md section 11)
            return replace(fact, failures=0, failed_at=-math.inf, died_early_at=-math.inf, lean=0, lean_since=now)
        case ForkServerFact():
            return replace(fact, stopping=False)  # the order may have been lost: it is given again
        case ProxyFact():
            return replace(fact, listening=False, reported_at=now, suspect_at=math.inf)
    return fact
