"""The control plane's decision: `reconcile(goal, observed, now) -> Plan`."""

import math
import random

from servd.controller.plan import actions
from servd.controller.plan.actions import Action, Plan
from servd.controller.plan.data_plane import is_served, proxy_actions
from servd.controller.plan.goal import Goal
from servd.controller.plan.intents import record
from servd.controller.plan.observed import Observed
from servd.controller.plan.replica_plan import replica_actions
from servd.controller.plan.routing import routing
from servd.controller.plan.settle import settle
from servd.controller.plan.templates import policy_actions, template_actions
from servd.ground.settings import Settings


def turn(goal: Goal, observed: Observed, settings: Settings, now: float, rng: random.Random) -> Plan:
    """One turn of the circle: derive facts, plan, record the intents.

    Call it after applying news. The caller stores `observed.take_changes()` before it carries out the plan.
    """
    wake_at = settle(goal, observed, now)
    plan = reconcile(observed, settings, now, rng)
    for action in plan.actions:
        record(observed, action, now)
    deadlines = [replica.kill_at for replica in observed.replicas.values() if replica.kill_at > now]
    deadlines += [proxy.kill_at for proxy in observed.proxies.values() if proxy.kill_at > now]
    return Plan(plan.actions, min(plan.wake_at, wake_at, *deadlines, math.inf))


def reconcile(observed: Observed, settings: Settings, now: float, rng: random.Random) -> Plan:
    """What to do now so that the world becomes the goal.

    Args:
        observed: facts, with the goal settled into them; not changed.
        settings: of the daemon.
        now: monotonic seconds.
        rng: source of ids; the same inputs and generator state give the same plan.

    Returns:
        Actions in the order in which they must be carried out, and the latest moment to plan again. Without actions the
        world is as wanted, or waits for news.
    """
    found: list[Action] = []
    wake_at = math.inf
    for item in (
        *template_actions(observed, settings, now, rng),
        *replica_actions(observed, settings, now, rng),
        *proxy_actions(observed, settings, now, rng),
        *policy_actions(observed, now, rng),
    ):
        if isinstance(item, float | int):
            wake_at = min(wake_at, item)
        else:
            found.append(item)
    leaving = {a.goal.replica_id for a in found if isinstance(a, actions.DrainReplica)}
    leaving |= {a.replica_id for a in found if isinstance(a, actions.KillReplica)}
    wanted = routing(observed, leaving)
    if wanted != observed.published:
        # before the drains, which wait for its acknowledgement; after the forks, whose orders are short and waited for
        forks = [action for action in found if _is_fork(action)]
        found = [*forks, actions.Publish(wanted), *(action for action in found if not _is_fork(action))]
    found.extend(_releases(observed))
    return Plan(tuple(found), wake_at)


def _is_fork(action: Action) -> bool:
    return isinstance(action, actions.StartReplica) and not action.spawn


def _releases(observed: Observed) -> list[Action]:
    """Addresses whose last proxy has gone and that nobody wants."""
    http = observed.data_plane.http
    wanted = {(http.host, http.port)} if http is not None and is_served(http) else set()
    used = {(proxy.host, proxy.port) for proxy in observed.proxies.values()}
    return [
        actions.ReleaseListeners(host, port, "no proxy uses it")
        for host, port in sorted(observed.listeners - used - wanted)
    ]
