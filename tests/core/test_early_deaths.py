"""Replicas that die soon after they were ready: counted as failed starts, and no old one goes for them."""

from dataclasses import replace

from servd.controller.plan import events
from servd.controller.plan.facts import ReplicaFact
from servd.controller.plan.restarts import EARLY_DEATH_S, PROBATION_S, failure_threshold
from servd.ground.states import ReplicaState
from servd.wire.messages import REPLICA
from tests.core.build import World, deployed, message_of, redeployed, verbs


def die(world: World, replica: ReplicaFact, code: int = -7) -> list[str]:
    """The replica has died; what is planned then."""
    return verbs(world.turn(events.Exited(REPLICA, replica.replica_id, code)))


def come_up(world: World) -> None:
    """What starts is ready, what stops is gone, until neither is left."""
    while True:
        starting = [r for r in world.replicas() if r.state is ReplicaState.STARTING]
        stopping = [r for r in world.replicas() if r.state is ReplicaState.STOPPING]
        if not starting and not stopping:
            return
        world.turn(*(world.running(r.start.goal) for r in starting), *(exited(r, 0) for r in stopping))


def exited(replica: ReplicaFact, code: int) -> events.Exited:
    return events.Exited(REPLICA, replica.replica_id, code)


def crash_loop(world: World, times: int) -> None:
    """So often the only replica dies and its successor becomes ready at once."""
    for _ in range(times):
        die(world, world.replicas()[0])
        come_up(world)


def test_deaths_right_after_a_start_are_tried_again_with_growing_pauses() -> None:
    world = deployed(num_replicas=1)
    crash_loop(world, failure_threshold(1) - 1)
    assert die(world, world.replicas()[0]) == []
    pauses = []
    for _ in range(4):
        begin, world.now = world.now, world.wake_at
        pauses.append(world.now - begin)
        assert verbs(world.turn()) == ["StartReplica"]
        come_up(world)
        assert die(world, world.replicas()[0]) == []
    assert pauses[0] >= 1.0
    assert pauses[-1] >= 8.0


def test_the_status_tells_of_early_deaths_and_of_the_next_try() -> None:
    world = deployed(num_replicas=1)
    crash_loop(world, failure_threshold(1) - 1)
    world.now += 2.5
    die(world, world.replicas()[0])
    message = message_of(world)
    assert "exited with signal 7 2.5 s after it was ready" in message
    assert "3 times in a row, deaths within 60 s of being ready included; the next try is" in message


def test_the_status_tells_why_no_start_succeeds_after_a_death() -> None:
    world = deployed(num_replicas=1)
    crash_loop(world, failure_threshold(1) - 1)
    world.now += 2.5
    die(world, world.replicas()[0])
    fact = world.observed.deployments[("app", "D")]
    world.observed.put(replace(fact, failures=fact.failures + 1, last_error="cannot copy: no space left"))
    assert message_of(world).endswith("after the last one. Last error:\ncannot copy: no space left")


def test_a_replica_that_lived_longer_is_replaced_at_once_however_often() -> None:
    world = deployed(num_replicas=1)
    for _ in range(2 * failure_threshold(1)):
        world.now += EARLY_DEATH_S
        assert "StartReplica" in die(world, world.replicas()[0])
        come_up(world)


def test_a_minute_without_deaths_forgets_them() -> None:
    world = deployed(num_replicas=1)
    crash_loop(world, failure_threshold(1) - 1)
    assert world.observed.deployments[("app", "D")].failures == failure_threshold(1) - 1
    world.turn()
    assert world.wake_at <= EARLY_DEATH_S
    world.now = EARLY_DEATH_S
    world.turn()
    fact = world.observed.deployments[("app", "D")]
    assert (fact.failures, fact.last_error) == (0, "")


def test_no_old_replica_goes_for_new_ones_that_do_not_stay() -> None:
    world = redeployed(deployed(num_replicas=4), "c2")
    old = {replica.replica_id for replica in world.replicas() if replica.state is ReplicaState.RUNNING}
    [fresh] = [r for r in world.replicas() if r.state is ReplicaState.STARTING]
    world.turn(world.running(fresh.start.goal))
    die(world, fresh)
    for _ in range(5):
        come_up(world)
        for replica in [r for r in world.replicas() if r.replica_id not in old]:
            die(world, replica)
    serving = {r.replica_id for r in world.replicas() if r.state is ReplicaState.RUNNING}
    assert len(serving & old) == 3, "one went for the first new one, none for those that came after its death"


def test_a_new_replica_that_stays_lets_the_roll_go_on() -> None:
    world = redeployed(deployed(num_replicas=2), "c2")
    [fresh] = [r for r in world.replicas() if r.state is ReplicaState.STARTING]
    world.turn(world.running(fresh.start.goal))
    die(world, fresh)
    come_up(world)
    new = world.observed.targets[("app", "D")].version
    assert {replica.version for replica in world.replicas()} > {new}, "the new ones are watched, the old one stays"
    world.now = world.wake_at
    world.turn()
    come_up(world)
    assert world.now == PROBATION_S
    assert {replica.version for replica in world.replicas()} == {new}


def test_where_others_have_stayed_the_pauses_do_not_grow() -> None:
    world = deployed(num_replicas=2)
    steady = world.replicas()[0]
    world.now = PROBATION_S
    for _ in range(2 * failure_threshold(2)):
        die(world, next(r for r in world.replicas() if r.replica_id != steady.replica_id))
        if not [r for r in world.replicas() if r.state is ReplicaState.STARTING]:
            begin, world.now = world.now, world.wake_at
            world.turn()
            assert world.now - begin <= 4.0
        come_up(world)
    assert world.observed.deployments[("app", "D")].failures == failure_threshold(2)
