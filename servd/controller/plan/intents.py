"""What is being carried out becomes a fact before it has an effect, so nothing is ordered twice."""

from dataclasses import replace

from servd.controller.plan import actions
from servd.controller.plan.autoscaler import Question
from servd.controller.plan.observed import Observed
from servd.ground.states import ReplicaState


def record(observed: Observed, action: actions.Action, now: float) -> None:
    """Note that `action` is being carried out; called before its effect, so nothing is ordered twice."""
    match action:
        case actions.StartForkServer():
            observed.put(action.fact)
        case actions.StopForkServer():
            observed.change(observed.fork_servers.get(action.fork_server_id), stopping=True)
        case actions.StartReplica():
            observed.put(action.fact)
        case actions.SetReplicaGoal():
            _record_replica_goal(observed, action, now)
        case actions.DrainReplica():
            _record_drain(observed, action, now)
        case actions.KillReplica():
            fact = observed.replicas.get(action.replica_id)
            observed.change(
                fact,
                state=ReplicaState.STOPPING,
                killed_at=now,
                stop_reason=(fact.stop_reason if fact else "") or action.reason,
            )
        case actions.StartProxy():
            observed.put(action.fact)
            observed.listeners.add((action.fact.host, action.fact.port))
        case actions.SetProxyGoal():
            proxy = observed.proxies.get(action.goal.proxy_id)
            observed.change(proxy, slots=action.goal.slots)
            if action.goal.drain:
                observed.change(proxy, slots=(), draining=True, kill_at=now + action.goal.drain_timeout_s + 1.0)
        case actions.KillProxy():
            observed.change(observed.proxies.get(action.proxy_id), draining=True, killed_at=now)
        case actions.Publish():
            observed.published = action.routing
        case actions.AskPolicy():
            for key in action.deployments:
                before = observed.questions.get(key, Question())
                observed.questions[key] = before.asked_again(action.ask.ask_id, action.fork_server_id, now)
        case actions.ReleaseListeners():
            observed.listeners.discard((action.host, action.port))


def _record_replica_goal(observed: Observed, action: actions.SetReplicaGoal, now: float) -> None:
    fact = observed.replicas.get(action.goal.replica_id)
    if fact is None:
        return
    changes_config = action.goal.config_version != fact.config_version
    updating = changes_config and fact.state is ReplicaState.RUNNING
    observed.put(
        replace(
            fact,
            start=replace(fact.start, goal=action.goal),
            state=ReplicaState.UPDATING if updating else fact.state,
            state_since=now if updating else fact.state_since,
        )
    )


def _record_drain(observed: Observed, action: actions.DrainReplica, now: float) -> None:
    fact = observed.replicas.get(action.goal.replica_id)
    if fact is None:
        return
    observed.put(
        replace(
            fact,
            start=replace(fact.start, goal=action.goal),
            state=ReplicaState.STOPPING,
            state_since=now,
            drain_sent=True,
            kill_at=now + action.goal.graceful_shutdown_timeout_s,
            stop_reason=fact.stop_reason or action.reason,
        )
    )
