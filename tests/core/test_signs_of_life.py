"""Which news are worth a plan: all but those that say what was known before."""

from dataclasses import replace
from typing import Any

import pytest

from servd.controller.plan import events
from servd.controller.plan.silence import SILENT_S
from servd.ground.states import ReplicaState
from servd.wire.messages import ProxyReport
from tests.core.build import World, deployed, report


def apply(world: World, event: events.Event) -> bool:
    world.now += 5.0
    return world.observed.apply(event, world.now)


def test_a_sign_of_life_is_noted_and_plans_nothing() -> None:
    world = deployed(num_replicas=2)
    for replica in world.replicas():
        assert not apply(world, report(replica))
        assert world.observed.replicas[replica.replica_id].reported_at == world.now
    [proxy, *_] = world.observed.proxies.values()
    assert not apply(world, ProxyReport(proxy.proxy_id, listening=True))
    assert world.observed.proxies[proxy.proxy_id].reported_at == world.now
    world.observed.take_changes()
    assert not world.turn().actions


@pytest.mark.parametrize(
    "said",
    [
        {"phase": "draining"},
        {"phase": "failed"},
        {"phase": "failed", "error": "ValueError"},
        {"applied": "other"},
        {"ongoing": 1},
        {"health_failures": 1},
        {"health_failures": 3},
        {"health_message": "slow"},
        {"model_ids": ("m",)},
        {"stack": "blocked"},
        {"memory_bytes": 1},
        {"lost_wait": "waits"},
        {"docs_path": "/docs"},
    ],
    ids=str,
)
@pytest.mark.parametrize("state", [ReplicaState.STARTING, ReplicaState.UPDATING, ReplicaState.RUNNING])
def test_whatever_changes_a_fact_is_worth_a_plan(state: ReplicaState, said: dict[str, Any]) -> None:
    world = deployed()
    [replica] = world.replicas()
    world.observed.put(replace(replica, state=state))
    before = world.observed.replicas[replica.replica_id]
    is_worth_it = apply(world, report(replica, **said))
    after = replace(world.observed.replicas[replica.replica_id], reported_at=before.reported_at)
    if said == {"ongoing": 1}:
        # noted, but without an autoscaler nothing follows from it
        assert after.ongoing == 1
        after = replace(after, ongoing=0)
    assert is_worth_it is (after != before)
    assert is_worth_it or state is not ReplicaState.RUNNING or said in ({"phase": "failed"}, {"ongoing": 1})


def test_load_is_worth_a_plan_where_an_autoscaler_goes_by_it() -> None:
    world = deployed(autoscaling_config={"min_replicas": 1, "max_replicas": 2})
    [replica] = world.replicas()
    assert apply(world, report(replica, ongoing=1))
    assert not apply(world, report(world.replicas()[0], ongoing=1))
    assert apply(world, report(world.replicas()[0], ongoing=0))


def test_who_was_suspected_and_speaks_is_worth_a_plan() -> None:
    world = deployed()
    [replica] = world.replicas()
    world.observed.change(replica, suspect_at=0.0)
    assert apply(world, report(replica))
    assert not apply(world, report(replica))


def test_the_silent_are_found_although_others_give_signs_of_life() -> None:
    world = deployed(num_replicas=2)
    silent, speaking = world.replicas()
    world.turn()
    look_at = world.wake_at
    while world.now < SILENT_S + 5.0:
        if apply(world, report(speaking)) or world.now >= look_at:
            world.turn()
            look_at = world.wake_at
    states = {r.replica_id: r.state for r in world.replicas()}
    assert states.get(silent.replica_id) is ReplicaState.STOPPING
    assert states[speaking.replica_id] is ReplicaState.RUNNING
