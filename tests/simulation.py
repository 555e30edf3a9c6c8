"""A world of seeded histories around the pure core: slow, failing, crashing, forgetful.

`Simulation(seed).run()` plays one history and raises `Violation` when a property of `tests.simulation_properties` breaks. News
arrive late, twice or never (where the real line would repeat them), processes die, the controller is restarted from its stored
facts between any two steps, load comes and goes, counts are pinned by hand, some hosts have no room to spare, and some daemons
become another edition now and then.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from servd.controller.plan import actions, change, events
from servd.controller.plan.actions import Action
from servd.controller.plan.facts import ForkServerFact, ProxyFact, ReplicaFact, ScalingFact, UpgradeFact
from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.controller.plan.observed import Observed
from servd.controller.plan.reconciler import turn
from servd.documents.control_plane import ApplicationDocument
from servd.ground.settings import Settings
from servd.ground.states import SERVING, DeployMode
from servd.wire.build_messages import BuildResult, BuiltDeployment
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, ProxyReport, ReplicaGoal, ReplicaReport
from servd.wire.policy_messages import PolicyAnswer
from tests.simulated_process import Process, exit_news
from tests.simulation_properties import LIVENESS, SAFETY, every_roll_has_ended

HTTP = HttpGoal("127.0.0.1", 8000)
NAMES = ("fruit", "math", "text")
MOST = 7
"""Replicas that a document asks for at most."""
AUTOSCALING = {"max_replicas": 5, "look_back_period_s": 1.0, "upscale_delay_s": 0.0}
POLICY = {"policy": {"policy_function": "m:policy"}, "upscaling_factor": 0.25}
CALM_STEPS = 600


class Violation(AssertionError):
    """A property does not hold."""


@dataclass
class Simulation:
    """One history.

    mutate: plants a fault in the plan (for testing the test). gentle: all code is good and nothing dies but the controller.
    """

    CALM_POLICY: ClassVar[int] = 2
    """What policies answer once nothing is disturbed."""

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
    starts_left: dict[tuple[str, int], int] = field(default_factory=dict)
    load: dict[str, int] = field(default_factory=dict)
    planned_for: Goal | None = None
    wake_at: float = 0.0
    spoke_at: float = 0.0
    served: set[str] = field(default_factory=set)
    decided: dict[tuple[str, str], tuple[ScalingFact, ...]] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    last_mail: dict[str, float] = field(default_factory=dict)
    calm: bool = False
    upgrade: UpgradeFact = field(default_factory=lambda: UpgradeFact("1 0.1.0 0", ""))

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.observed.edition = self.upgrade.edition
        # all that a document can ask for fits, but nothing beyond it
        room = len(NAMES) * (MOST + 1) if self.seed % 3 == 0 else None
        self.settings = Settings(state_dir="/s", socket_dir="/r", num_cpus=room, proxies=1 + self.seed % 2)

    def run(self) -> "Simulation":
        """Play the history, then let the world calm down: what was begun ends, and once all is mended it becomes the goal."""
        for _ in range(self.steps):
            wait = self.wait
            self.rng.choice(
                [
                    self.put,
                    wait,
                    wait,
                    wait,
                    self.kill,
                    self.restart,
                    self.repeat,
                    self.scale,
                    self.surge,
                    self.terminate,
                    self.lose,
                ]
            )()
            self.step()
        self.calm = True
        self.end_rolls()
        self.mend()
        self.settle()
        if self.seed % 4 == 1 and not self.gentle and self.goal.running:
            self.put_half_good()
            self.end_rolls()
            self.mend()
            self.settle()
        return self

    @property
    def is_pinned(self) -> bool:
        """Whether documents tell all that the code depends on, so that one without a change needs no build."""
        return self.seed % 4 == 0

    @property
    def has_policies(self) -> bool:
        """Whether most deployments have a policy of user code."""
        return self.seed % 5 == 2

    @property
    def preloads(self) -> bool:
        """Whether `Main` constructs its instance in a template. Not in gentle histories: one that ended while no controller was
        there counts as a failed start, since nobody can tell why it did.
        """
        return self.seed % 4 == 3 and not self.gentle

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
                elif self.rng.random() < 0.3 and not self.gentle:
                    self.starts_left[(name, self.code[name])] = self.rng.choice([1, 2, 4])
            self.counts[name] = self.rng.choice([1, 1, 2, 3, MOST])
        revision = self.goal.revision + 1
        apps = tuple(self.wish(name, revision) for name in names)
        self.goal = Goal(revision, True, DeployMode.MULTI_APP, HTTP, apps)
        if self.rng.random() < 0.1:
            self.goal = Goal(revision)
        self.history.append(f"{self.now:.1f} put {[(n, self.counts[n], self.code.get(n, 0)) for n in names]}")

    def put_half_good(self) -> None:
        """New code for all, of which only the first replicas come up."""
        for app in self.goal.applications:
            self.code[app.name] = self.code.get(app.name, 0) + 1
            self.starts_left[(app.name, self.code[app.name])] = self.rng.randrange(1, 6)
        self.put_again()

    def mend(self) -> None:
        """What was bad is good from now on."""
        self.broken_code.clear()
        self.starts_left.clear()
        for process in self.processes.values():
            process.broken = False

    def put_again(self) -> None:
        """The same document comes once more."""
        revision = self.goal.revision + 1
        apps = tuple(replace(app, deploy_id=revision) for app in self.goal.applications)
        self.goal = replace(self.goal, revision=revision, applications=apps)
        self.history.append(f"{self.now:.1f} put again")

    def wish(self, name: str, revision: int) -> ApplicationGoal:
        override: dict[str, object] = {"name": "Main", "user_config": {"price": self.rng.randrange(3)}}
        if self.rng.random() < (0.9 if self.has_policies else 0.3):
            delay = self.rng.choice([0.0, 0.5])
            override["autoscaling_config"] = {
                **AUTOSCALING,
                "min_replicas": self.rng.randrange(2),
                "downscale_delay_s": delay,
                **(POLICY if self.has_policies else {}),
            }
        else:
            override["num_replicas"] = self.counts[name]
        if self.preloads:
            override["preload"] = True
        document = ApplicationDocument(
            name,
            "m:a",
            args={"code": self.code.get(name, 0)} if self.is_pinned else {},
            deployments=(override,),
            route_prefix=f"/{name}",
            route_prefix_given=True,
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

    def terminate(self) -> None:
        """Somebody sends SIGTERM to a replica."""
        serving = [p for p in self.processes.values() if p.alive and p.ready and not p.draining]
        if serving and not self.gentle:
            victim = self.rng.choice(serving)
            self.history.append(f"{self.now:.1f} terminate {victim.id}")
            victim.draining = True
            self.hello(victim)

    def lose(self) -> None:
        """A thread of a forked replica waits for one that the fork has left behind."""
        forked = [p for p in self.processes.values() if p.alive and p.was_forked]
        if forked and not self.gentle:
            victim = self.rng.choice(forked)
            self.history.append(f"{self.now:.1f} lose {victim.id}")
            victim.lost_wait = "waits in libfoo.so"
            self.hello(victim)

    def scale(self) -> None:
        """Somebody sets a count by hand."""
        if self.goal.applications:
            app = self.rng.choice(self.goal.applications).name
            count = self.rng.choice([0, 1, 4])
            self.history.append(f"{self.now:.1f} scale {app} {count}")
            self.goal = change.scale(self.goal, app, "Main", count)

    def surge(self) -> None:
        """Load comes or goes: so many requests at a time at an application's `Main`."""
        name = self.rng.choice(NAMES)
        self.load[name] = self.rng.choice([0, 0, 1, 3, 9])
        self.history.append(f"{self.now:.1f} load {name} {self.load[name]}")
        self.share_load(name)

    def share_load(self, name: str) -> None:
        """Those who serve report their share; without any the requests wait at the proxy."""
        serving = self.serving(name)
        for process in serving:
            self.hello(process)
        waiting = 0 if serving else self.load.get(name, 0)
        self.mail.append((self.now, events.QueueReported("proxy", f"{name}_Main", waiting)))

    def serving(self, name: str) -> list[Process]:
        """Replicas of an application's `Main` that take requests."""
        found = (p for p in self.processes.values() if p.alive and p.ready and not p.draining)
        return [p for p in found if p.id.startswith(f"{name}_Main#")]

    def ongoing(self, process: Process) -> int:
        """Requests at one replica: all have the same share, the first ones the rest."""
        name = process.id.partition("_")[0]
        serving = self.serving(name)
        if process not in serving:
            return 0
        share, rest = divmod(self.load.get(name, 0), len(serving))
        return share + (serving.index(process) < rest)

    def restart(self) -> None:
        """The controller dies with all news under way; its successor has the stored facts."""
        self.history.append(f"{self.now:.1f} controller restart")
        self.mail.clear()
        self.planned_for = None
        self.observed = Observed.restore(list(self.stored.values()), 0.0, self.now)
        if self.seed % 5 == 2:
            self.upgrade_perhaps()
        self.observed.edition = self.upgrade.edition
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
                self.deliver(events.StartLost(REPLICA, identifier))
            elif process is None and isinstance(fact, ForkServerFact):
                self.deliver(events.StartLost(FORK_SERVER, identifier))
            elif process is None or not process.alive:
                self.deliver(exit_news(type(fact).__name__, identifier, None))
            else:
                self.hello(process)
                if isinstance(fact, ReplicaFact):
                    self.order(fact.start.goal)
                elif isinstance(fact, ProxyFact) and fact.draining:
                    self.end(process, 0)

    def upgrade_perhaps(self) -> None:
        """The daemon is of another edition than before, or the same; it tells the controller what it became last."""
        if random.Random(self.now).random() < 0.4:
            before = self.upgrade.edition
            self.upgrade = UpgradeFact(f"1 0.1.0 {int(before.rpartition(' ')[2]) + 1}", before)
        if self.upgrade.before:
            self.observed.apply(self.upgrade, self.now)

    def repeat(self) -> None:
        """Every child reports again."""
        for process in self.processes.values():
            if process.alive:
                self.hello(process)

    def step(self) -> None:
        """Deliver due news, plan, store, carry out."""
        self.speak()
        due = [event for at, event in self.mail if at <= self.now]
        self.mail = [(at, event) for at, event in self.mail if at > self.now]
        # as the control loop does: signs of life alone are worth no plan
        is_moved = [self.observed.apply(event, self.now) for event in due]
        if self.planned_for is self.goal and not any(is_moved) and self.now < self.wake_at:
            return
        self.planned_for = self.goal
        routed = self.routed()
        self.served = {r.replica_id for r in self.observed.replicas.values() if r.state in SERVING}
        self.decided = {key: fact.decisions for key, fact in self.observed.deployments.items()}
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
        """Run without disturbance until every liveness property holds and nothing is under way, at most `CALM_STEPS`.

        An update that has stopped is asked for once more.
        """
        self.repeat()
        for _ in range(CALM_STEPS):
            self.step()
            if self.has_stalled():
                self.put_again()
            # policies are asked for ever
            under_way = [event for _, event in self.mail if not isinstance(event, PolicyAnswer)]
            if not under_way and all(holds(self) for holds in LIVENESS.values()):
                return
            self.now = max(self.now, min([self.wake_at, *(at for at, _ in self.mail)]))
        broken = [name for name, holds in LIVENESS.items() if not holds(self)] or ["mail without end"]
        raise Violation(f"seed {self.seed}: not within {CALM_STEPS} steps: {broken}\n{self.story()}")

    def has_stalled(self) -> bool:
        """Whether an update has stopped that no later document asks for again."""
        stalled = {fact.app for fact in self.observed.deployments.values() if fact.is_stalled}
        facts = {
            app.name: self.observed.applications.get(app.name) for app in self.goal.applications if app.name in stalled
        }
        wanted = {app.name: app.deploy_id for app in self.goal.applications}
        return any(fact is not None and fact.built_deploy_id == wanted[name] for name, fact in facts.items())

    def end_rolls(self) -> None:
        """Run without disturbance, bad code and all, until no application is being deployed, at most `CALM_STEPS`."""
        self.repeat()
        for _ in range(CALM_STEPS):
            self.step()
            if every_roll_has_ended(self):
                return
            self.now = max(self.now, min([self.wake_at, *(at for at, _ in self.mail)]))
        raise Violation(f"seed {self.seed}: not within {CALM_STEPS} steps: a roll ends\n{self.story()}")

    def speak(self) -> None:
        """Who lives gives a sign of life every few seconds."""
        if self.now - self.spoke_at >= 5.0:
            self.spoke_at = self.now
            for process in self.processes.values():
                if process.alive and process.kind != "ForkServerFact":
                    self.hello(process)
            for name in NAMES:
                self.share_load(name)

    def routed(self) -> dict[str, int]:
        """Routable replicas per full deployment name in the published routing."""
        published = self.observed.published
        return {t.deployment: len(t.endpoints) for t in published.targets} if published else {}

    def deliver(self, *news: events.Event) -> None:
        """News arrive after a random delay, sometimes twice; those of one sender in order, as on a stream socket."""
        for event in news:
            names = ("id", "replica_id", "fork_server_id", "proxy_id", "ask_id")
            identifier = next(getattr(event, n) for n in names if hasattr(event, n))
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
                self.deliver(events.Started(PROXY, process.id, 1, 1))
                self.hello(process)
            case actions.SetProxyGoal():
                if action.goal.drain:
                    self.end(self.processes.get(action.goal.proxy_id), 0)
            case actions.KillProxy():
                self.end(self.processes.get(action.proxy_id), -9)
            case actions.AskPolicy():
                self.ask(action)

    def ask(self, action: actions.AskPolicy) -> None:
        """A policy answers, fails, or is never heard of again."""
        server = self.observed.fork_servers.get(action.fork_server_id)
        if server is None or server.stopping:
            raise Violation(f"seed {self.seed}: a fork server that is gone is asked")
        if not self.processes[action.fork_server_id].alive:
            self.deliver(PolicyAnswer(action.ask.ask_id, error="its fork server has ended"))
            return
        mood = 0.0 if self.calm else self.rng.random()
        if mood > 0.9:
            return
        error = "ValueError: no idea" if mood > 0.8 else ""
        wanted = {
            name: float(self.CALM_POLICY) if self.calm else self.rng.choice([0.0, 0.0, 1.0, 2.5, 4.0])
            for _, name in action.deployments
        }
        self.deliver(PolicyAnswer(action.ask.ask_id, {} if error else wanted, error))

    def start_fork_server(self, action: actions.StartForkServer) -> None:
        order = action.order
        process = self.processes[order.fork_server_id] = Process("ForkServerFact", order.fork_server_id)
        version = self.code.get(order.app, 0)
        broken = (order.app, version) in self.broken_code
        error = "ImportError: broken" if broken and self.rng.random() < 0.5 else ""
        if order.preload and broken:
            error = "ValueError: broken"
        deployments = (BuiltDeployment("Helper", {}), BuiltDeployment("Main", {}))
        process.result = BuildResult("b", error, f"{order.app}{version}", deployments, "Main", is_pinned=self.is_pinned)
        if order.preload and self.seed % 5 == 1:
            process.result = replace(process.result, fork_unsafe="the constructor left 1 thread(s) running")
        if order.preload and not self.calm and not self.gentle and self.rng.random() < 0.1:
            self.deliver(events.Started(FORK_SERVER, process.id, 1, 1))
            self.end(process, 3)  # its constructor ended the process
            return
        self.deliver(events.Started(FORK_SERVER, process.id, 1, 1))
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
            self.mail.append((at, events.StartLost(REPLICA, replica_id)))
            return
        app = action.fact.app
        process = self.processes[replica_id] = Process("ReplicaFact", replica_id, goal=action.start.goal)
        process.broken = not self.comes_up(app, self.code.get(app, 0))
        process.was_forked = not action.spawn
        self.deliver(events.Started(REPLICA, replica_id, 1, 1))
        if process.broken:
            report = ReplicaReport(replica_id, "failed", error="ValueError: broken")
            self.deliver(report)
            self.end(process, 1)
        else:
            process.applied, process.ready = action.start.goal.config_version, True
            self.hello(process)

    def comes_up(self, app: str, version: int) -> bool:
        """Whether a replica of this code that is started now becomes ready."""
        left = self.starts_left.get((app, version))
        if left:
            self.starts_left[(app, version)] = left - 1
        return (app, version) not in self.broken_code and left != 0

    def order(self, goal: ReplicaGoal) -> None:
        process = self.processes.get(goal.replica_id)
        if process is None or not process.alive:
            return
        process.goal = goal
        if goal.drain:
            process.draining = True
            if self.calm or self.rng.random() < 0.8:
                self.end(process, 0)  # else it hangs until it is killed
            return
        if goal.config_version != process.applied and not (self.calm or self.gentle) and self.rng.random() < 0.1:
            process.failed = True  # its `reconfigure` raised: it applies nothing any more
        if not process.failed:
            process.applied = goal.config_version
        self.hello(process)

    def hello(self, process: Process) -> None:
        match process.kind:
            case "ReplicaFact":
                phase = "draining" if process.draining else "failed" if process.failed else "running"
                said = ReplicaReport(process.id, phase, applied=process.applied, ongoing=self.ongoing(process))
                self.deliver(replace(said, lost_wait=process.lost_wait))
            case "ForkServerFact":
                assert process.result is not None
                self.deliver(
                    events.Started(FORK_SERVER, process.id, 1, 1), events.BuildFinished(process.id, process.result)
                )
            case _:
                self.deliver(ProxyReport(process.id, listening=True))

    def end(self, process: Process | None, code: int) -> None:
        if process is not None and process.alive:
            process.alive = False
            self.deliver(exit_news(process.kind, process.id, code))
