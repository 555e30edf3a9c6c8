"""Processes that live but do not speak: stopped, or so stuck that not even their second thread runs.

A forked child that never greets hangs in something that it inherited, a lock for one: its successors are spawned.

A forked replica that speaks, but in which a thread waits for one that the fork left behind, is of no use either. It has proof
that the wait can never end, however slow its code is (`servd/replica/native/lost_waits.py`): it is killed at once, its successor
is spawned, and so are all further replicas of that version of the deployment. Those that have met no such wait go on.

A fork server speaks once it has carried out an order, which takes milliseconds. One that does not for `SILENT_S` is stopped, or
hangs in what the application does before a fork: it is ended, its replicas stay, and another takes its place. So is one that has
left every question to a policy unanswered for as long.

A proxy that speaks but does not listen in time is of no use either.

How this works: every proxy and replica reports at least every few seconds. One that is silent for too long becomes a suspect,
and is ended if it still is one a moment later: after a pause of the controller itself its own mail may not be read yet.
"""

import math
from dataclasses import replace

from servd.controller.plan.autoscaler import Question
from servd.controller.plan.facts import DeploymentFact, ForkServerFact, ProxyFact, ReplicaFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.targets import DeploymentTarget
from servd.ground.states import ROUTABLE, ReplicaState

SILENT_S = 30.0
MUTE_S = 10.0
"""A forked child greets before any of the user's code runs: it takes milliseconds."""
SURE_S = 2.0
READY_LIMIT_S = 60.0
"""How long a proxy may live without listening."""


def settle_silence(observed: Observed, now: float) -> float:
    """Judge all proxies and replicas; gives the moment to look again (monotonic seconds, inf = never)."""
    wake_at = math.inf
    observed.unready_since = {
        proxy.proxy_id: observed.unready_since.get(proxy.proxy_id, now)
        for proxy in observed.proxies.values()
        if not proxy.listening and not proxy.draining
    }
    for proxy in list(observed.proxies.values()):
        if not proxy.draining:
            wake_at = min(wake_at, _judge(proxy, SILENT_S, observed, now))
    for proxy_id, since in observed.unready_since.items():
        if since + READY_LIMIT_S > now:
            wake_at = min(wake_at, since + READY_LIMIT_S)
        elif not observed.proxies[proxy_id].draining:
            observed.notes.append(f"proxy {proxy_id} does not listen after {READY_LIMIT_S:.0f} s")
            observed.put(replace(observed.proxies[proxy_id], draining=True, kill_at=now))
            wake_at = now
    for replica in list(observed.replicas.values()):
        if replica.state in ROUTABLE:
            limit_s = max(SILENT_S, replica.start.goal.health_check_timeout_s)
            wake_at = min(wake_at, _judge(replica, limit_s, observed, now))
        elif replica.state is ReplicaState.STARTING and replica.was_forked:
            judge = _judge_fork_server if is_unborn(replica) else _judge_birth
            wake_at = min(wake_at, judge(replica, observed, now))
    for question in list(observed.questions.values()):
        wake_at = min(wake_at, _judge_asked(question, observed, now))
    return wake_at


def settle_lost_waits(observed: Observed, now: float) -> None:
    """Judge the waits of all replicas. They are nobody's fault: no failed start, no reason to be UNHEALTHY."""
    for replica in list(observed.replicas.values()):
        if not replica.lost_wait or replica.state is ReplicaState.STOPPING:
            continue
        reason = replica.lost_wait
        observed.put(replace(replica, state=ReplicaState.STOPPING, state_since=now, kill_at=now, stop_reason=reason))
        about = f"replica {replica.replica_id} {reason}"
        observed.notes.append(about)
        target, fact = observed.targets.get(replica.key), observed.deployments.get(replica.key)
        is_new = target is not None and target.version == replica.version
        if target is not None and fact is not None and is_new and fact.spawned_version != target.version:
            fact = replace(fact, spawned_version=target.version, spawned_reason=about)
            if target.options["preload"]:
                # a spawned one has no use for the constructed instance
                fact = replace(fact, unfit_version=target.version, unfit_reason=about)
            observed.put(fact)


def is_spawned(target: DeploymentTarget, fact: DeploymentFact, server: ForkServerFact) -> bool:
    """Whether further replicas of the deployment are spawned, be it by wish or because they cannot be forked from there."""
    assert server.result is not None
    is_wish = target.options["start_method"] == "spawn"
    return is_wish or bool(server.result.fork_unsafe) or server.mute_children or fact.spawned_version == target.version


def _judge_fork_server(child: ReplicaFact, observed: Observed, now: float) -> float:
    """Judge the one that was ordered to fork this child, and has not."""
    server = observed.fork_servers.get(child.fork_server_id)
    if server is None or server.stopping or server.is_deaf:
        return math.inf
    look_at = _look_again_at(child, child.created_at + SILENT_S, observed, now)
    if look_at > now:
        return look_at
    reason = _replace_deaf(server, "forked no replica", observed)
    # what it was ordered counts as failed when it is gone
    for one in list(observed.replicas.values()):
        if one.fork_server_id == server.fork_server_id and is_unborn(one):
            observed.put(replace(one, error=reason))
    return now


def is_unborn(replica: ReplicaFact) -> bool:
    """Whether its fork server has been ordered to fork it, and has not."""
    return replica.state is ReplicaState.STARTING and replica.was_forked and not replica.pid


def _judge_asked(question: Question, observed: Observed, now: float) -> float:
    """Judge the one that was asked about a policy: it answers whatever the policy does."""
    server = observed.fork_servers.get(question.fork_server_id)
    if server is None or server.stopping or server.is_deaf or question.silent_since == math.inf:
        return math.inf
    if question.silent_since + SILENT_S > now:
        return question.silent_since + SILENT_S
    _replace_deaf(server, "answered no question to a policy", observed)
    return now


def _replace_deaf(server: ForkServerFact, lacks: str, observed: Observed) -> str:
    """Have another one take its place; gives why, for people."""
    observed.put(replace(server, is_deaf=True))
    kind = "template" if server.preload_key else "fork server"
    reason = f"{kind} {server.fork_server_id} {lacks} within {SILENT_S:.0f} s and is replaced"
    observed.notes.append(reason)
    return f"{reason}: it is stopped, or hangs in what the application does before a fork"


def _judge_birth(child: ReplicaFact, observed: Observed, now: float) -> float:
    if child.reported_at > -math.inf:
        return math.inf
    look_at = _look_again_at(child, child.state_since + MUTE_S, observed, now)
    if look_at > now:
        return look_at
    reason = f"said nothing for {now - child.state_since:.0f} s after the fork; its successor is spawned"
    observed.put(replace(child, state=ReplicaState.STOPPING, state_since=now, kill_at=now, stop_reason=reason))
    server = observed.fork_servers.get(child.fork_server_id)
    if server is not None and not server.mute_children:
        observed.put(replace(server, mute_children=True))
        observed.notes.append(f"replica {child.replica_id} {reason}")
    return now


def _judge(fact: ProxyFact | ReplicaFact, limit_s: float, observed: Observed, now: float) -> float:
    look_at = _look_again_at(fact, fact.reported_at + limit_s, observed, now)
    if look_at > now:
        return look_at
    reason = f"silent for {now - fact.reported_at:.0f} s"
    if isinstance(fact, ProxyFact):
        observed.put(replace(fact, draining=True, kill_at=now))
    else:
        observed.put(replace(fact, state=ReplicaState.STOPPING, state_since=now, kill_at=now, stop_reason=reason))
        observed.blame(fact, f"replica {fact.replica_id} is {reason}")
    return now


def _look_again_at(fact: ProxyFact | ReplicaFact, silent_at: float, observed: Observed, now: float) -> float:
    """When to judge: `now` once the process is surely silent, and was suspected for long enough to have been heard."""
    if silent_at > now:
        return silent_at
    if fact.suspect_at == math.inf:
        observed.put(replace(fact, suspect_at=now))
        return now + SURE_S
    return max(fact.suspect_at + SURE_S, now)
