"""Small builders of core values for tests."""

import random
from collections.abc import Sequence
from typing import Any

from servd.controller.plan import actions, events
from servd.controller.plan.actions import Action, Plan
from servd.controller.plan.facts import ReplicaFact
from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.controller.plan.observed import Observed
from servd.controller.plan.reconciler import turn
from servd.controller.shown.status import Identity, application_status, instance_view
from servd.documents.control_plane import ApplicationDocument
from servd.ground.settings import Settings
from servd.ground.states import ApplicationStatus, DeployMode, ReplicaState
from servd.wire.build_messages import BuildResult, BuiltDeployment
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, ProxyReport, ReplicaGoal, ReplicaReport, ReplicaStart

HTTP = HttpGoal("127.0.0.1", 8000)
IDENTITY = Identity(1, "a", "w", "n", "127.0.0.1")


def some_settings(**changes: Any) -> Settings:
    return Settings(**{"state_dir": "/state", "socket_dir": "/sockets", "start_dir": "/start", **changes})


def a_replica(
    replica_id: str,
    *,
    version: str = "v",
    config: str = "config",
    state: ReplicaState = ReplicaState.RUNNING,
    created_at: float = 0.0,
) -> ReplicaFact:
    goal = ReplicaGoal(replica_id, config, "", 100, 10.0, 30.0, 20.0)
    start = ReplicaStart(replica_id, "app", "D", "token", "ipc://x", goal, 1, "/state", "/sockets", "/logs")
    return ReplicaFact(replica_id, "app", "D", version, "f1", start, "a1", "w1", created_at, state=state)


def an_app(name: str = "app", deploy_id: int = 1, **document: Any) -> ApplicationGoal:
    fields: dict[str, Any] = {"import_path": "m:app", "stored": {"name": name}, **document}
    return ApplicationGoal(ApplicationDocument(name, **fields), deploy_id=deploy_id, deployed_at=1000.0)


def a_goal(*apps: ApplicationGoal, revision: int = 1) -> Goal:
    return Goal(revision, True, DeployMode.MULTI_APP, HTTP, apps)


def a_build(*names: str, code_version: str = "c1", is_pinned: bool = False, **options: dict[str, Any]) -> BuildResult:
    deployments = tuple(BuiltDeployment(name, options.get(name, {})) for name in names)
    return BuildResult("b", code_version=code_version, deployments=deployments, ingress=names[-1], is_pinned=is_pinned)


class World:
    """The core with a world that does what it is told when `run` is called. Time stands still unless told otherwise."""

    def __init__(self, goal: Goal | None = None, **settings: Any) -> None:
        self.goal = goal or Goal()
        self.settings = some_settings(**settings)
        self.observed = Observed()
        self.now = 0.0
        self.rng = random.Random(1)
        self.builds: dict[str, BuildResult] = {}
        self.log: list[Action] = []
        self.wake_at = float("inf")
        self.pid = 100
        self.stored: dict[tuple[str, str], Any] = {}

    def turn(self, *news: events.Event) -> Plan:
        for event in news:
            self.observed.apply(event, self.now)
        plan = turn(self.goal, self.observed, self.settings, self.now, self.rng)
        self.wake_at = plan.wake_at
        self.log += plan.actions
        return plan

    def run(self, limit: int = 60) -> "World":
        """Turn and carry out until nothing is left to do."""
        plan = self.turn()
        for _ in range(limit):
            if not plan.actions:
                return self
            plan = self.turn(*(event for action in plan.actions for event in self.effects(action)))
        raise AssertionError(f"no fixed point within {limit} turns: {plan.actions}")

    def effects(self, action: Action) -> Sequence[events.Event]:
        """News of a world in which everything works at once."""
        self.pid += 1
        match action:
            case actions.StartForkServer():
                identifier = action.order.fork_server_id
                started = events.Started(FORK_SERVER, identifier, self.pid, 1)
                build = self.builds.get(action.order.app)
                return [started, events.BuildFinished(identifier, build)] if build else [started]
            case actions.StopForkServer():
                return [events.Exited(FORK_SERVER, action.fork_server_id, 0)]
            case actions.StartReplica():
                return [events.Started(REPLICA, action.start.replica_id, self.pid, 1), self.running(action.start.goal)]
            case actions.SetReplicaGoal():
                return [self.running(action.goal)]
            case actions.DrainReplica():
                return [events.Exited(REPLICA, action.goal.replica_id, 0)]
            case actions.KillReplica():
                return [events.Exited(REPLICA, action.replica_id, -9)]
            case actions.StartProxy():
                report = ProxyReport(action.fact.proxy_id, listening=True)
                return [events.Started(PROXY, action.fact.proxy_id, self.pid, 1), report]
            case actions.SetProxyGoal():
                return [events.Exited(PROXY, action.goal.proxy_id, 0)] if action.goal.drain else []
            case actions.KillProxy():
                return [events.Exited(PROXY, action.proxy_id, -9)]
        return []

    @staticmethod
    def running(goal: ReplicaGoal) -> ReplicaReport:
        return ReplicaReport(goal.replica_id, "running", applied=goal.config_version)

    def replicas(self, deployment: str = "D", app: str = "app") -> list[ReplicaFact]:
        return self.observed.replicas_of(app, deployment)


def verbs(plan: Plan | Sequence[Action]) -> list[str]:
    """Names of the actions, `Publish` left out: routing has tests of its own."""
    found = plan.actions if isinstance(plan, Plan) else plan
    return [type(action).__name__ for action in found if not isinstance(action, actions.Publish)]


def status_of(world: World, app: str = "app") -> ApplicationStatus:
    return application_status(world.observed.applications[app])


def deployed(world: World | None = None, **options: object) -> World:
    world = world or World(a_goal(an_app()))
    world.builds["app"] = a_build("D", D=dict(options))
    return world.run()


def redeploy(world: World, code_version: str = "c1", **options: object) -> World:
    """The next document arrives. options: of the deployment, as the document overrides them."""
    revision = world.goal.revision + 1
    overrides = ({"name": "D", **options},) if options else ()
    others = [app for app in world.goal.applications if app.name != "app"]
    fresh = an_app(deploy_id=revision, deployments=overrides)
    world.goal = a_goal(fresh, *others, revision=revision)
    code = dict(world.builds["app"].deployments[0].options)
    world.builds["app"] = a_build("D", code_version=code_version, D=code)
    return world


def redeployed(world: World, code_version: str = "c1", **options: object) -> World:
    """The next document has arrived, its build has ended and a plan was made; nothing else has happened yet."""
    plan = redeploy(world, code_version, **options).turn()
    world.turn(*(e for a in plan.actions if isinstance(a, actions.StartForkServer) for e in world.effects(a)))
    return world


def report(replica: ReplicaFact, phase: str = "running", **said: Any) -> ReplicaReport:
    """What a replica says; it has applied its config."""
    fields = {"applied": replica.config_version, **said}
    return ReplicaReport(replica.replica_id, phase, **fields)


def restart_controller(world: World) -> World:
    """The controller has died; its successor has the stored facts."""
    world.stored.update(world.observed.take_changes())
    facts = [fact for fact in world.stored.values() if fact is not None]
    world.observed = Observed.restore(facts, 0.0, world.now)
    return world


def fail_starts(world: World, count: int) -> None:
    for _ in range(count):
        [replica] = [r for r in world.replicas() if r.state is ReplicaState.STARTING]
        report = ReplicaReport(replica.replica_id, "failed", error="ValueError: no mangos")
        world.turn(report, events.Exited(REPLICA, replica.replica_id, 1))


def starting_world(**document: Any) -> World:
    world = World(a_goal(an_app(**document)), open_http=False)
    plan = world.turn()
    order = next(a for a in plan.actions if verbs([a]) == ["StartForkServer"]).order  # type: ignore[union-attr]
    world.observed.apply(events.Started(FORK_SERVER, order.fork_server_id, 5, 1), 0.0)
    world.turn(events.BuildFinished(order.fork_server_id, a_build("D")))
    return world


def message_of(world: World) -> str:
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=world.now)
    return view.applications[0].deployments[0].message
