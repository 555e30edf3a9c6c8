"""The data plane's address: which options are in force, and which proxies that asks for."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace

from servd.controller.plan import actions
from servd.controller.plan.facts import DataPlaneFact, ProxyFact
from servd.controller.plan.goal import Goal, HttpGoal
from servd.controller.plan.observed import PROXY_DRAIN_S, Observed
from servd.controller.plan.outgrown import is_outdated
from servd.ground.ids import random_hex
from servd.ground.settings import DEFAULT_HTTP_HOST, DEFAULT_HTTP_PORT, Settings
from servd.ground.states import ProxyLocation
from servd.wire.messages import ProxyGoal

KILL_AGAIN_S = 5.0
RETRY_S = 3.0
"""Longest pause between two tries to start a proxy. No code of the user's runs there: what hinders it is the host, and once that
has ended all shall be well within seconds."""


def flag_options(settings: Settings, stored: HttpGoal | None = None) -> HttpGoal:
    """Options of the flags, over the stored ones, over the defaults."""
    base = stored or HttpGoal(DEFAULT_HTTP_HOST, DEFAULT_HTTP_PORT)
    return replace(
        base,
        host=base.host if settings.http_host is None else settings.http_host,
        port=base.port if settings.http_port is None else settings.http_port,
        location=base.location if settings.http_location is None else settings.http_location,
        grpc_port=base.grpc_port if settings.grpc_port is None else settings.grpc_port,
        grpc_servicers=settings.grpc_servicers or base.grpc_servicers,
        grpc_reflection=base.grpc_reflection if settings.grpc_reflection is None else settings.grpc_reflection,
        # of those who vouch for clients no flag says anything
        ssl_certfile="" if settings.http_tls_cert else base.ssl_certfile,
        ssl_keyfile="" if settings.http_tls_cert else base.ssl_keyfile,
    )


def boot(goal: Goal, observed: Observed, settings: Settings) -> Goal:
    """The goal to start a controller with.

    Options in force survive its restart; at a daemon's start flags win over stored ones, and the applications of the stored
    goal have served before: see `DataPlaneFact.restored`.
    """
    fact = observed.data_plane
    if fact.http is None and not fact.running:
        if goal.running:
            http = flag_options(settings, goal.http)
            servicers = http.grpc_servicers if http.grpc_port else ()
            # all of them are built anew
            applications = tuple(replace(app, grpc_servicers=servicers) for app in goal.applications)
            goal = replace(goal, http=http, applications=applications)
            observed.put(replace(fact, restored={app.name: app.deploy_id for app in goal.applications}))
        elif settings.open_http:
            observed.put(replace(fact, http=flag_options(settings)))
    elif goal.running and fact.http is not None:
        goal = replace(goal, http=fact.http)
    return goal


def settle_data_plane(goal: Goal, observed: Observed) -> None:
    """Options in force follow the goal; a DELETE closes the plane last, also one that `servd start` had opened."""
    fact = observed.data_plane
    if goal.running and (fact.http != goal.http or not fact.running):
        observed.put(DataPlaneFact(http=goal.http, running=True, restored=fact.restored))
    elif not goal.running and fact.running and not observed.applications:
        observed.put(DataPlaneFact())


def is_served(http: HttpGoal | None) -> bool:
    """Whether proxies shall listen under these options."""
    return http is not None and http.location != ProxyLocation.NO_SERVER


def proxy_actions(
    observed: Observed, settings: Settings, now: float, rng: random.Random
) -> Iterator[actions.Action | float]:
    """Actions that bring the proxies to their goal, and moments to look again.

    One proxy per slot at the address in force. Proxies of another address or edition drain once their successor listens.
    """
    http = observed.data_plane.http
    wanted = http if is_served(http) else None
    current = [p for p in observed.proxies.values() if not p.draining]
    placed = [p for p in current if wanted is not None and _fits(p, wanted)]
    fitting = [p for p in placed if not is_outdated(p, observed)]
    if wanted is not None:
        yield from _start_missing(observed, settings, wanted, fitting, now, rng)
        yield from _stand_in(observed.data_plane, settings, fitting)
    ready = wanted is None or (all(p.listening for p in fitting) and len(fitting) >= settings.proxies)
    for proxy in current:
        is_misplaced = proxy not in placed or proxy.slot >= settings.proxies
        # one that has not reported to this controller yet serves all the same, if it ever did
        if (is_misplaced and not proxy.has_served) or (ready and (is_misplaced or proxy not in fitting)):
            reason = "address given up" if is_misplaced else "upgrade"
            yield actions.SetProxyGoal(goal_of(proxy, observed, drain=True), reason)
    for proxy in observed.proxies.values():
        if proxy.draining and proxy.kill_at <= now and proxy.killed_at < now - KILL_AGAIN_S:
            yield actions.KillProxy(proxy.proxy_id, "drain took too long")
        elif proxy.draining:
            yield max(proxy.kill_at, proxy.killed_at + KILL_AGAIN_S) if proxy.kill_at < math.inf else math.inf


def goal_of(proxy: ProxyFact, observed: Observed, *, drain: bool) -> ProxyGoal:
    """What a proxy is told when it shall drain, and whenever it says Hello."""
    if not drain:
        return ProxyGoal(proxy.proxy_id, slots=tuple(proxy.slots))
    http = observed.data_plane.http
    stays = http is not None and is_served(http) and (proxy.host, proxy.grpc_port) == (http.host, http.grpc_port)
    return ProxyGoal(proxy.proxy_id, drain=True, drain_timeout_s=PROXY_DRAIN_S, is_replaced=stays)


def _fits(proxy: ProxyFact, http: HttpGoal) -> bool:
    mine = (proxy.host, proxy.port, proxy.root_path, proxy.grpc_port, proxy.keep_alive_timeout_s, proxy.tls_files)
    return mine == (http.host, http.port, http.root_path, http.grpc_port, http.keep_alive_timeout_s, http.tls_files)


def _stand_in(fact: DataPlaneFact, settings: Settings, fitting: list[ProxyFact]) -> Iterator[actions.Action]:
    """While a proxy cannot be started another one accepts the connections of its slot: they would wait for as long."""
    able = [proxy for proxy in fitting if proxy.listening]
    taken = {proxy.slot for proxy in able}
    missing = tuple(slot for slot in range(settings.proxies) if fact.proxy_failures and slot not in taken)
    for number, proxy in enumerate(able):
        slots = () if number else missing
        if tuple(proxy.slots) != slots:
            reason = f"stands in for slots {', '.join(map(str, slots))}" if slots else "stands in for nobody"
            yield actions.SetProxyGoal(ProxyGoal(proxy.proxy_id, slots=slots), reason)


def _start_missing(
    observed: Observed,
    settings: Settings,
    http: HttpGoal,
    fitting: list[ProxyFact],
    now: float,
    rng: random.Random,
) -> Iterator[actions.Action | float]:
    fact = observed.data_plane
    retry_at = fact.proxy_failed_at + min(fact.proxy_failures, RETRY_S)
    if retry_at > now:
        yield retry_at
        return
    taken = {p.slot for p in fitting}
    for slot in range(settings.proxies):
        if slot not in taken:
            proxy = ProxyFact(
                proxy_id=f"proxy-{slot}-{random_hex(6, rng)}",
                slot=slot,
                host=http.host,
                port=http.port,
                root_path=http.root_path,
                token=random_hex(32, rng),
                actor_id=random_hex(32, rng),
                worker_id=random_hex(56, rng),
                created_at=now,
                reported_at=now,
                edition=observed.edition,
                grpc_port=http.grpc_port,
                keep_alive_timeout_s=http.keep_alive_timeout_s,
                tls_files=http.tls_files,
            )
            yield actions.StartProxy(proxy, f"slot {slot} is empty")
