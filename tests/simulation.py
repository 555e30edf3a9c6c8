"""A world of seeded histories around the pure core: slow, failing, crashing, forgetful.

`Simulation(seed).run()` plays one history and raises `Violation` when a property breaks. News arrive late, twice or never (where
the real line would repeat them), processes die, the controller is restarted from its stored facts between any two steps.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from servd.control_plane import ApplicationDocument
from servd.controller import actions, events
from servd.controller.actions import Action
from servd.controller.facts import ForkServerFact, ProxyFact, ReplicaFact
from servd.controller.goal import ApplicationGoal, Goal, HttpGoal
from servd.controller.observed import Observed
from servd.controller.reconciler import turn
from servd.controller.rollout import rolling_step
from servd.controller.settle import wanted_count
from servd.messages import BuildResult, BuiltDeployment, ProxyReport, ReplicaGoal, ReplicaReport
from servd.settings import Settings
from servd.states import ROUTABLE, ApplicationStatus, DeployMode, ReplicaState

HTTP = HttpGoal("127.0.0.1", 8000)
NAMES = ("fruit", "math", "text")


class Violation(AssertionError):
    """A property does not hold."""


@dataclass
class Process:
    """A replica, fork server or proxy of the simulated host."""

    kind: str
    id: str
    alive: bool = True
    goal: ReplicaGoal | None = None
    applied: str = ""
    ready: bool = False
    broken: bool = False
    draining: bool = False
    result: BuildResult | None = None


@dataclass
class Simulation:
    """One history.

    mutate: plants a fault in the plan (for testing the test). gentle: all code is good and nothing dies but the controller.
    """

    seed: int
    steps: int = 60
    gentle: bool = False
    mutate: Callable[[Action], Action | None] | None = None
    rng: random.Random = field(init=False)
    goal: Goal = field(default_factory=Goal)
    observed: Observed = field(default_factory=Observed)
    now: float = 0.0
    processes: dict[str, Process] = field(default_factory=dict)
    mail: list[tuple[float, events.Event]] = field(default_factory=list)
    ever_started: set[str] = field(default_factory=set)
    stored: dict[tuple[str, str], object] = field(default_factory=dict)
    code: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    broken_code: set[tuple[str, int]] = field(default_factory=set)
    wake_at: float = 0.0
    spoke_at: float = 0.0
    served: set[str] = field(default_factory=set)
    history: list[str] = field(default_factory=list)
    last_mail: dict[str, float] = field(default_factory=dict)
    calm: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.settings = Settings(state_dir="/s", socket_dir="/r")

    # --- the history ----------------------------------------------------------------------------------------------

    def run(self) -> "Simulation":
        """Play the history, then let the world calm down and demand that it becomes the goal."""
        for _ in range(self.steps):
            self.rng.choice([self.put, self.wait, self.wait, self.wait, self.kill, self.restart, self.repeat])()
            self.step()
        self.calm = True
        self.broken_code.clear()
        for process in self.processes.values():
            process.broken = False
        self.settle()
        return self

    def story(self) -> str:
        """The last moments and the facts, for people."""
        facts = [f"{r.replica_id} {r.state} {r.version[:4]}" for r in self.observed.replicas.values()]
        apps = [f"{a.name} {a.settled or '...'} {a.message[:80]}" for a in self.observed.applications.values()]
        return "\n".join([*self.history[-40:], *apps, *facts])

    def put(self) -> None:
        """A new document: random applications, counts, code and configs."""
        names = [name for name in NAMES if self.rng.random() < 0.7]
        for name in names:
            if self.rng.random() < 0.4:
                self.code[name] = self.code.get(name, 0) + 1
                if self.rng.random() < 0.3 and not self.gentle:
                    self.broken_code.add((name, self.code[name]))
            self.counts[name] = self.rng.choice([1, 1, 2, 3, 7])
        revision = self.goal.revision + 1
        apps = tuple(self.wish(name, revision) for name in names)
        self.goal = Goal(revision, True, DeployMode.MULTI_APP, HTTP, apps)
        if self.rng.random() < 0.1:
            self.goal = Goal(revision)
        self.history.append(f"{self.now:.1f} put {[(n, self.counts[n], self.code.get(n, 0)) for n in names]}")

    def wish(self, name: str, revision: int) -> ApplicationGoal:
        override = {
            "name": "Main",
            "num_replicas": self.counts[name],
            "user_config": {"price": self.rng.randrange(3)},
        }
        document = ApplicationDocument(
            name, "m:a", deployments=(override,), route_prefix=f"/{name}", route_prefix_given=True
        )
        return ApplicationGoal(document, deploy_id=revision, deployed_at=float(revision))

    def wait(self) -> None:
        """Time passes."""
        self.now += self.rng.choice([0.01, 0.1, 1.0, 10.0])

    def kill(self) -> None:
        """Something dies."""
        living = [p for p in self.processes.values() if p.alive]
        if living and not self.gentle:
            victim = self.rng.choice(living)
            self.history.append(f"{self.now:.1f} kill {victim.id}")
            self.end(victim, -9)

    def restart(self) -> None:
        """The controller dies with all news under way; its successor has the stored facts."""
        self.history.append(f"{self.now:.1f} controller restart")
        self.mail.clear()
        self.observed = Observed.restore(list(self.stored.values()), 0.0, self.now)
        for fact in [
            *self.observed.replicas.values(),
            *self.observed.fork_servers.values(),
            *self.observed.proxies.values(),
        ]:
            identifier = (
                getattr(fact, "replica_id", "") or getattr(fact, "fork_server_id", "") or getattr(fact, "proxy_id", "")
            )
            process = self.processes.get(identifier)
            if process is None and isinstance(fact, ReplicaFact):
                self.deliver(events.ReplicaStartLost(identifier))
            elif process is None and isinstance(fact, ForkServerFact):
                self.deliver(events.ForkServerStartLost(identifier))
            elif process is None or not process.alive:
                self.deliver(self.exit_news(type(fact).__name__, identifier, None))
            else:
                self.hello(process)
                if isinstance(fact, ReplicaFact):
                    self.order(fact.start.goal)
                elif isinstance(fact, ProxyFact) and fact.draining:
                    self.end(process, 0)

    def repeat(self) -> None:
        """Every child reports again."""
        for process in self.processes.values():
            if process.alive:
                self.hello(process)

    # --- the circle -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Deliver due news, plan, store, carry out."""
        self.speak()
        due = [event for at, event in self.mail if at <= self.now]
        self.mail = [(at, event) for at, event in self.mail if at > self.now]
        for event in due:
            self.observed.apply(event, self.now)
        routed = self.routed()
        serving = (*ROUTABLE, ReplicaState.RECOVERING)
        self.served = {r.replica_id for r in self.observed.replicas.values() if r.state in serving}
        plan = turn(self.goal, self.observed, self.settings, self.now, self.rng)
        for key, fact in self.observed.take_changes().items():
            if fact is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = fact
        self.wake_at = plan.wake_at
        for name, holds in SAFETY.items():
            if not holds(self, plan.actions, routed):
                raise Violation(f"seed {self.seed}: {name}: {plan.summary()}\n{self.story()}")
        if not self.calm and self.rng.random() < 0.05:
            self.restart()  # died between intent and effect
            return
        for action in plan.actions:
            chosen = self.mutate(action) if self.mutate else action
            if chosen is not None:
                self.carry_out(chosen)

    def settle(self) -> None:
        """Run without disturbance until every liveness property holds and nothing is under way, at most 150 steps."""
        for process in self.processes.values():
            if process.alive:
                self.hello(process)
        for _ in range(150):
            self.step()
            if not self.mail and all(holds(self) for holds in LIVENESS.values()):
                return
            self.now = max(self.now, min([self.wake_at, *(at for at, _ in self.mail)]))
        broken = [name for name, holds in LIVENESS.items() if not holds(self)] or ["mail without end"]
        raise Violation(f"seed {self.seed}: not within 150 steps: {broken}\n{self.story()}")

    def speak(self) -> None:
        """Who lives gives a sign of life every few seconds."""
        if self.now - self.spoke_at >= 5.0:
            self.spoke_at = self.now
            for process in self.processes.values():
                if process.alive and process.kind != "ForkServerFact":
                    self.hello(process)

    def routed(self) -> dict[str, int]:
        """Routable replicas per full deployment name in the published routing."""
        published = self.observed.published
        return {t.deployment: len(t.endpoints) for t in published.targets} if published else {}

    # --- the world ------------------------------------------------------------------------------------------------

    def deliver(self, *news: events.Event) -> None:
        """News arrive after a random delay, sometimes twice; those of one sender in order, as on a stream socket."""
        for event in news:
            sender = getattr(event, "report", event)
            identifier = next(
                getattr(sender, n) for n in ("replica_id", "fork_server_id", "proxy_id") if hasattr(sender, n)
            )
            delay = 0.0 if self.calm else self.rng.choice([0.0, 0.0, 0.05, 0.5, 5.0])
            times = 2 if not self.calm and self.rng.random() < 0.1 else 1
            at = max(self.now + delay, self.last_mail.get(identifier, 0.0))
            self.last_mail[identifier] = at
            self.mail += [(at, event)] * times

    def carry_out(self, action: Action) -> None:
        self.history.append(f"{self.now:.1f} {type(action).__name__} {getattr(action, 'reason', '')}")
        match action:
            case actions.StartForkServer():
                self.start_fork_server(action)
            case actions.StopForkServer():
                self.end(self.processes.get(action.fork_server_id), 0)
            case actions.StartReplica():
                self.start_replica(action)
            case actions.SetReplicaGoal() | actions.DrainReplica():
                self.order(action.goal)
            case actions.KillReplica():
                self.end(self.processes.get(action.replica_id), -9)
            case actions.StartProxy():
                process = self.processes[action.fact.proxy_id] = Process("ProxyFact", action.fact.proxy_id)
                self.deliver(events.ProxyStarted(process.id, 1, 1))
                self.hello(process)
            case actions.SetProxyGoal():
                self.end(self.processes.get(action.goal.proxy_id), 0)
            case actions.KillProxy():
                self.end(self.processes.get(action.proxy_id), -9)

    def start_fork_server(self, action: actions.StartForkServer) -> None:
        order = action.order
        process = self.processes[order.fork_server_id] = Process("ForkServerFact", order.fork_server_id)
        version = self.code.get(order.app, 0)
        broken = (order.app, version) in self.broken_code
        error = "ImportError: broken" if broken and self.rng.random() < 0.5 else ""
        deployments = (BuiltDeployment("Helper", {}), BuiltDeployment("Main", {}))
        process.result = BuildResult("b", error, f"{order.app}{version}", deployments, "Main")
        self.deliver(events.ForkServerStarted(process.id, 1, 1))
        self.hello(process)

    def start_replica(self, action: actions.StartReplica) -> None:
        replica_id = action.start.replica_id
        if replica_id in self.ever_started:
            raise Violation(f"seed {self.seed}: id twice: {replica_id}")
        self.ever_started.add(replica_id)
        parent = self.processes.get(action.fork_server_id)
        if parent is None or not parent.alive:
            # the executor knows it from the fork server's exit, so it is told after that
            at = max(self.now, self.last_mail.get(action.fork_server_id, 0.0))
            self.mail.append((at, events.ReplicaStartLost(replica_id)))
            return
        app = action.fact.app
        process = self.processes[replica_id] = Process("ReplicaFact", replica_id, goal=action.start.goal)
        process.broken = (app, self.code.get(app, 0)) in self.broken_code
        self.deliver(events.ReplicaForked(replica_id, 1, 1))
        if process.broken:
            report = ReplicaReport(replica_id, "failed", error="ValueError: broken")
            self.deliver(events.ReplicaReported(report))
            self.end(process, 1)
        else:
            process.applied, process.ready = action.start.goal.config_version, True
            self.hello(process)

    def order(self, goal: ReplicaGoal) -> None:
        process = self.processes.get(goal.replica_id)
        if process is None or not process.alive:
            return
        process.goal = goal
        if goal.drain:
            process.draining = True
            if self.calm or self.rng.random() < 0.8:
                self.end(process, 0)  # else it hangs until it is killed
        else:
            process.applied = goal.config_version
            self.hello(process)

    def hello(self, process: Process) -> None:
        match process.kind:
            case "ReplicaFact":
                phase = "draining" if process.draining else "running"
                self.deliver(events.ReplicaReported(ReplicaReport(process.id, phase, applied=process.applied)))
            case "ForkServerFact":
                assert process.result is not None
                self.deliver(
                    events.ForkServerStarted(process.id, 1, 1), events.BuildFinished(process.id, process.result)
                )
            case _:
                self.deliver(events.ProxyReported(ProxyReport(process.id, listening=True)))

    def end(self, process: Process | None, code: int) -> None:
        if process is not None and process.alive:
            process.alive = False
            self.deliver(self.exit_news(process.kind, process.id, code))

    @staticmethod
    def exit_news(kind: str, identifier: str, code: int | None) -> events.Event:
        match kind:
            case "ReplicaFact":
                return events.ReplicaExited(identifier, code)
            case "ForkServerFact":
                return events.ForkServerExited(identifier, code)
            case _:
                return events.ProxyExited(identifier, code)


# --- properties ---------------------------------------------------------------------------------------------------


def ready_counts(sim: Simulation) -> Iterator[tuple[str, int, int, int]]:
    """(deployment, wanted, living ones, step) of every target."""
    for key, target in sim.observed.targets.items():
        wanted = wanted_count(target, sim.observed.deployments.get(key))
        living = [r for r in sim.observed.replicas_of(*key) if r.state is not ReplicaState.STOPPING]
        yield target.id.full_name, wanted, len(living), rolling_step(wanted)


def bounded(sim: Simulation, plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """No start takes the processes of a deployment, STOPPING ones apart, above T + S."""
    started = {a.fact.key for a in plan if isinstance(a, actions.StartReplica)}
    names = {f"{app}_{name}" for app, name in started}
    return all(living <= wanted + step for name, wanted, living, step in ready_counts(sim) if name in names)


def never_below(sim: Simulation, plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """A plan that drains by choice leaves at least the wanted number routed, or what there was before."""
    drained = {a.goal.replica_id for a in plan if isinstance(a, actions.DrainReplica) and a.reason == "replaced"}
    for key, target in sim.observed.targets.items():
        replicas = sim.observed.replicas_of(*key)
        if not any(r.replica_id in drained and r.replica_id in sim.served for r in replicas):
            continue  # what never served takes nothing away
        serving = sum(r.state in (*ROUTABLE, ReplicaState.RECOVERING) for r in replicas)
        wanted = wanted_count(target, sim.observed.deployments.get(key))
        before = routed.get(target.id.full_name, 0)
        if serving < min(wanted, before):
            return False
    return True


def routes_before_drains(sim: Simulation, plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """A drained replica is in no published routing."""
    published = sim.observed.published
    if published is None:
        return True
    endpoints = {e.replica_id for t in published.targets for e in t.endpoints}
    return not endpoints & {a.goal.replica_id for a in plan if isinstance(a, actions.DrainReplica)}


def no_deleted_routes(sim: Simulation, plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Applications that are not wanted have no route."""
    published = sim.observed.published
    wanted = {app.name for app in sim.goal.applications}
    return published is None or all(route.app in wanted for route in published.routes)


def nobody_is_blamed(sim: Simulation, plan: tuple[Action, ...], routed: dict[str, int]) -> bool:
    """Where code is good and only controllers die, nothing has failed."""
    deployments, applications = sim.observed.deployments.values(), sim.observed.applications.values()
    blamed = any(fact.failures or fact.trouble for fact in deployments) or any(a.build_attempts for a in applications)
    return not sim.gentle or not blamed


SAFETY: dict[str, Callable[[Simulation, tuple[Action, ...], dict[str, int]], bool]] = {
    "at most T + S processes": bounded,
    "never below the wanted running count by choice": never_below,
    "a drained replica is not routed": routes_before_drains,
    "a deleted application has no route": no_deleted_routes,
    "the death of a controller is nobody's failure": nobody_is_blamed,
}


def goal_is_reached(sim: Simulation) -> bool:
    """Every wanted application settled, every deployment at its count, one version, one config."""
    for wish in sim.goal.applications:
        fact = sim.observed.applications.get(wish.name)
        if fact is None or fact.built_deploy_id != wish.deploy_id or not fact.settled:
            return False
        if fact.settled == ApplicationStatus.DEPLOY_FAILED and "ImportError" in fact.message:
            continue
        for key, target in sim.observed.targets.items():
            if key[0] == wish.name:
                replicas = sim.observed.replicas_of(*key)
                fits = [r for r in replicas if r.version == target.version and r.state is ReplicaState.RUNNING]
                configs = {r.config_version for r in replicas}
                if len(fits) != len(replicas) or len(replicas) != wanted_count(target, None):
                    return False
                if configs and configs != {target.config_version}:
                    return False
    return True


def nothing_is_left_over(sim: Simulation) -> bool:
    """What is not wanted is gone, in the facts and in the world."""
    wanted = {app.name for app in sim.goal.applications}
    known = {*sim.observed.replicas, *sim.observed.fork_servers, *sim.observed.proxies}
    alive = {p.id for p in sim.processes.values() if p.alive}
    return set(sim.observed.applications) == wanted and alive == known


def data_plane_follows(sim: Simulation) -> bool:
    """One listening proxy exactly while Serve runs."""
    return len([p for p in sim.observed.proxies.values() if p.listening]) == (1 if sim.goal.running else 0)


def every_replica_applied(sim: Simulation) -> bool:
    """The processes run what the facts say."""
    processes = {r.replica_id: sim.processes.get(r.replica_id) for r in sim.observed.replicas.values()}
    return all(
        p is not None and p.applied == sim.observed.replicas[name].config_version for name, p in processes.items()
    )


LIVENESS: dict[str, Callable[[Simulation], bool]] = {
    "the goal is reached": goal_is_reached,
    "nothing is left over": nothing_is_left_over,
    "the data plane follows the goal": data_plane_follows,
    "every replica applied its config": every_replica_applied,
}

FAULTS: dict[str, Callable[[Action], Action | None]] = {
    "a lost drain kill": lambda a: None if isinstance(a, actions.KillReplica) else a,
    "a lost start": lambda a: None if isinstance(a, actions.StartReplica) else a,
    "a lost reconfigure": lambda a: None if isinstance(a, actions.SetReplicaGoal) else a,
    "a lost fork server stop": lambda a: None if isinstance(a, actions.StopForkServer) else a,
    "a lost proxy start": lambda a: None if isinstance(a, actions.StartProxy) else a,
    "an id twice": lambda a: (
        replace(a, fact=replace(a.fact, start=replace(a.fact.start, replica_id="twice")))
        if isinstance(a, actions.StartReplica)
        else a
    ),
}
"""Planted faults: each must be caught by some history."""
