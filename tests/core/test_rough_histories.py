"""Seeded histories with what operators do: prefixes that change hands, rollbacks, capacities, other deployments, documents in a
row; and fork servers that somebody stops.
"""

from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest

from servd.controller.plan import actions, events
from servd.controller.plan.actions import Action
from servd.controller.plan.goal import Goal
from servd.ground.states import ApplicationStatus
from servd.wire.build_messages import BuiltDeployment
from servd.wire.messages import REPLICA
from tests.simulated_process import Process
from tests.simulation import NAMES, Simulation, Violation

SHAPES = (("Helper", "Main"), ("Main",), ("Other", "Main", "Front"))
"""Deployments of an application by its code, the ingress last."""


@dataclass
class RoughSimulation(Simulation):
    """stopped: fork servers that carry out and answer nothing. unborn: what these were ordered to fork."""

    goals: list[Goal] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    unborn: dict[str, list[str]] = field(default_factory=dict)

    def put(self) -> None:
        if self.goal.running:
            self.goals.append(self.goal)
        if self.goals and self.rng.random() < 0.2:
            self.goal = replace(self.rng.choice(self.goals), revision=self.goal.revision)
            self.goal = replace(self.goal, applications=tuple(replace(a, scale={}) for a in self.goal.applications))
            self.put_again()
            return
        super().put()
        if self.goal.running:
            prefixes = self.rng.choice(list(permutations(f"/{name}" for name in NAMES)))
            capacity = self.rng.choice([None, None, None, 30.0, 50.0, 100.0])
            pairs = zip(self.goal.applications, prefixes, strict=False)
            documents = [replace(app, document=replace(app.document, route_prefix=prefix)) for app, prefix in pairs]
            apps = tuple(replace(app, target_capacity=capacity) for app in documents)
            self.goal = replace(self.goal, target_capacity=capacity, applications=apps)
        for _ in range(self.rng.choice([0, 0, 0, 1, 4])):
            self.put_again()

    def terminate(self) -> None:
        mood = self.rng.random()
        if mood < 0.35 and not self.gentle:
            self.stop_one()
        elif mood < 0.5:
            self.stopped.clear()
        else:
            super().terminate()

    def stop_one(self) -> None:
        """Somebody stops a fork server that has built, and is known to have."""
        facts = [fact for fact in self.observed.fork_servers.values() if fact.result is not None]
        known = [fact.fork_server_id for fact in facts if self.stored.get(("fork_server", fact.fork_server_id)) == fact]
        if known:
            self.stopped.add(self.rng.choice(known))

    def start_fork_server(self, action: actions.StartForkServer) -> None:
        super().start_fork_server(action)
        process = self.processes[action.order.fork_server_id]
        assert process.result is not None
        names = SHAPES[self.code.get(action.order.app, 0) % len(SHAPES)]
        shape = tuple(BuiltDeployment(name, {}) for name in names)
        process.result = replace(process.result, deployments=shape, ingress=names[-1])
        is_slow = not self.calm and self.rng.random() < 0.3
        late = 40.0 if is_slow else 0.0
        for index, (at, event) in enumerate(self.mail):
            if isinstance(event, events.BuildFinished) and event.fork_server_id == process.id:
                self.mail[index] = (at + late, replace(event, result=process.result))
        self.last_mail[process.id] = self.last_mail.get(process.id, self.now) + late

    def start_replica(self, action: actions.StartReplica) -> None:
        server = self.processes.get(action.fact.fork_server_id)
        if server is None or not server.alive or server.id not in self.stopped or action.spawn:
            super().start_replica(action)
            return
        self.ever_started.add(action.start.replica_id)
        self.unborn.setdefault(server.id, []).append(action.start.replica_id)

    def carry_out(self, action: Action) -> None:
        super().carry_out(action)
        if isinstance(action, actions.KillReplica) and action.replica_id not in self.processes:
            self.deliver(events.Exited(REPLICA, action.replica_id, None))

    def end(self, process: Process | None, code: int) -> None:
        if process is not None and process.alive:
            for replica_id in self.unborn.pop(process.id, []):
                self.deliver(events.StartFailed(REPLICA, replica_id, "its fork server died before it was forked"))
        super().end(process, code)

    def ask(self, action: actions.AskPolicy) -> None:
        if action.fork_server_id not in self.stopped or not self.processes[action.fork_server_id].alive:
            super().ask(action)

    def hello(self, process: Process) -> None:
        if process.id not in self.stopped:
            super().hello(process)

    def restart(self) -> None:
        self.unborn.clear()
        super().restart()

    def step(self) -> None:
        super().step()
        published = self.observed.published
        prefixes = [route.prefix for route in published.routes] if published is not None else []
        if len(set(prefixes)) < len(prefixes):
            raise Violation(f"seed {self.seed}: two applications at one prefix\n{self.story()}")

    def settle(self) -> None:
        super().settle()
        published = self.observed.published
        routes = {route.app: route.prefix for route in published.routes} if published is not None else {}
        for app in self.goal.applications:
            runs = self.observed.applications[app.name].settled == ApplicationStatus.RUNNING
            if runs and routes.get(app.name) != app.document.route_prefix:
                raise Violation(f"seed {self.seed}: {app.name} is not where it shall be\n{self.story()}")


@pytest.mark.slow
def test_rough_histories() -> None:
    for seed in range(60):
        RoughSimulation(seed).run()


@pytest.mark.long
@pytest.mark.parametrize("block", range(10))
def test_many_rough_histories(block: int) -> None:
    for seed in range(20_000 + block * 500, 20_500 + block * 500):
        RoughSimulation(seed, gentle=seed % 7 == 0).run()
