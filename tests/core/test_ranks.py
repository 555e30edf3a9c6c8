"""Ranks of replicas: dense, kept by survivors, handed to replacements, told to who runs."""

from dataclasses import replace

import pytest

from servd.controller.plan import events
from servd.controller.plan.facts import ReplicaFact
from servd.controller.plan.rollout import ranks_of
from servd.ground.states import ReplicaState
from servd.wire.messages import REPLICA
from tests.core.build import World, a_replica, deployed, redeploy, report, restart_controller, verbs


def ranked(replica_id: str, rank: int) -> ReplicaFact:
    fact = a_replica(replica_id)
    return replace(fact, start=replace(fact.start, goal=replace(fact.start.goal, rank=rank)))


@pytest.mark.parametrize(
    ("had", "wanted", "ranks"),
    [
        ([], 3, []),
        ([0, 1, 2], 3, [0, 1, 2]),
        ([2, 0, 1], 3, [2, 0, 1]),
        ([0, 0, 0], 3, [0, 1, 2]),  # of a servd that knew no ranks
        ([1, 2], 3, [1, 2]),  # the first has died: its replacement gets 0
        ([1, 2], 2, [1, 0]),
        ([0, 3, 4], 3, [0, 1, 2]),
        ([4, 1], 2, [0, 1]),
        ([2, 0, 1, 5], 3, [2, 0, 1, 3]),  # one too many, for now
        ([7], 1, [0]),
    ],
)
def test_who_has_which_rank(had: list[int], wanted: int, ranks: list[int]) -> None:
    replicas = [ranked(f"D#{index}", rank) for index, rank in enumerate(had)]
    found = ranks_of(replicas, wanted)
    assert [found[replica.replica_id] for replica in replicas] == ranks


def told(world: World) -> dict[str, tuple[int, int]]:
    """Replica id -> rank and count that it was told last, of those that stay."""
    return {
        r.replica_id: (r.start.goal.rank, r.start.goal.world_size)
        for r in world.replicas()
        if r.state is not ReplicaState.STOPPING
    }


def test_all_are_told_their_rank_and_the_count_when_they_start() -> None:
    world = deployed(num_replicas=3)
    assert list(told(world).values()) == [(0, 3), (1, 3), (2, 3)]
    assert "SetReplicaGoal" not in verbs(world.log)


def test_one_that_dies_leaves_its_rank_to_its_replacement() -> None:
    world = deployed(num_replicas=3)
    before = told(world)
    dead = next(iter(before))
    world.now = 100.0
    world.turn(events.Exited(REPLICA, dead, -9))
    world.run()
    after = told(world)
    assert {name: place for name, place in after.items() if name in before} == {
        name: place for name, place in before.items() if name != dead
    }
    assert sorted(after.values()) == [(0, 3), (1, 3), (2, 3)]


def test_survivors_move_only_into_places_that_became_free() -> None:
    world = deployed(num_replicas=4)
    before = told(world)
    # the two with the lowest ranks are the ones that have nothing to do
    busy = [r for r in world.replicas() if r.start.goal.rank >= 2]
    world.turn(*(report(r, ongoing=5) for r in busy))
    redeploy(world, num_replicas=2).run()
    assert list(told(world)) == [r.replica_id for r in busy]
    assert sorted(told(world).values()) == [(0, 2), (1, 2)]
    world = deployed(num_replicas=4)
    redeploy(world, num_replicas=6).run()
    assert {name: rank for name, (rank, _) in told(world).items() if name in before} == {
        name: rank for name, (rank, _) in before.items() if name in told(world)
    }
    assert sorted(told(world).values()) == [(rank, 6) for rank in range(6)]


def test_a_new_version_begins_at_zero_beside_the_old_one() -> None:
    world = deployed(num_replicas=2)
    redeploy(world, code_version="c2").run()
    assert sorted(told(world).values()) == [(0, 2), (1, 2)]


def test_ranks_outlive_the_controller() -> None:
    world = deployed(num_replicas=3)
    world.turn(events.Exited(REPLICA, next(iter(told(world))), -9))
    world.run()
    before = told(world)
    restart_controller(world)
    assert told(world) == before
    world.turn(*(report(r) for r in world.replicas()))
    assert told(world.run()) == before


def test_a_replica_that_cannot_take_its_new_rank_is_replaced() -> None:
    world = deployed(num_replicas=2)
    [first, _] = world.replicas()
    world.turn(report(first, "updating"), report(first, "failed", error="ValueError: not this rank"))
    world.run()
    assert first.replica_id not in told(world)
    assert sorted(told(world).values()) == [(0, 2), (1, 2)]
