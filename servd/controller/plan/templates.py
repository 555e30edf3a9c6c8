"""Which fork servers are needed: one builder per accepted document, one template per runtime environment in use, and one per
version of each deployment that preloads."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace

from servd.controller.plan import actions
from servd.controller.plan.autoscaler import Question
from servd.controller.plan.facts import ApplicationFact, ForkServerFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.outgrown import is_outdated
from servd.controller.plan.restarts import BackOff, retry_delay_s
from servd.controller.plan.scaling import ask_of, asked_next_at
from servd.controller.plan.settle import builder_of
from servd.controller.plan.targets import DeploymentTarget, base_environment, failures_allowed
from servd.documents.runtime_env import local_path
from servd.ground.ids import random_hex
from servd.ground.settings import Settings, fork_server_socket
from servd.wire.build_messages import BuildOrder


def template_for(target: DeploymentTarget, app: ApplicationFact, observed: Observed) -> ForkServerFact | None:
    """The living fork server whose children are to be replicas of this target, built or still building.

    While an upgrade goes on, one of the edition before serves until the one that takes its place is built.
    """

    def rank(server: ForkServerFact) -> tuple[bool, bool, float]:
        return server.result is None, is_outdated(server, observed), server.created_at

    return min(_fitting(target, app, observed), key=rank, default=None)


def _fitting(target: DeploymentTarget, app: ApplicationFact, observed: Observed) -> list[ForkServerFact]:
    preload_key = observed.preload_key(target)
    return [
        f
        for f in observed.fork_servers.in_group(app.name)
        if f.template_version == app.code_version
        and f.env_key == target.env_key
        and f.preload_key == preload_key
        and not f.stopping
        and not f.is_deaf
    ]


def template_actions(
    observed: Observed, settings: Settings, now: float, rng: random.Random
) -> Iterator[actions.Action | float]:
    """Start builders and templates that are missing, stop those that nobody needs."""
    needed: set[str] = set()
    for app in observed.applications.values():
        if app.deleting:
            continue
        if app.built_deploy_id < app.goal.deploy_id:
            builder = builder_of(app, observed)
            if builder is None:
                fact = replace(_builder(app, settings, now, rng), edition=observed.edition)
                yield actions.StartForkServer(fact, f"build {app.name}")
            else:
                needed.add(builder.fork_server_id)
        if app.active is not None:
            for item in _templates(app, observed, settings, now, rng):
                if isinstance(item, str):
                    needed.add(item)
                else:
                    yield item
    parents = {replica.fork_server_id for replica in observed.replicas.values()}
    for server in observed.fork_servers.values():
        if server.stopping or server.fork_server_id in needed:
            continue
        if server.is_deaf:
            yield actions.StopForkServer(server.fork_server_id, "it carries out no order")
        elif server.result is None or server.fork_server_id not in parents:
            yield actions.StopForkServer(server.fork_server_id, "nobody needs it")


def _templates(
    app: ApplicationFact, observed: Observed, settings: Settings, now: float, rng: random.Random
) -> Iterator[actions.Action | float | str]:
    started: set[tuple[str, str]] = set()
    for key, target in observed.targets.items():
        if key[0] != app.name:
            continue
        fact = observed.deployments.get(key)
        serving = template_for(target, app, observed)
        if serving is not None:
            yield serving.fork_server_id
        staying = [s for s in _fitting(target, app, observed) if not is_outdated(s, observed)]
        if staying:
            yield min(staying, key=lambda s: s.created_at).fork_server_id
        elif (target.env_key, observed.preload_key(target)) not in started and fact is not None:
            threshold = failures_allowed(target, fact)
            retry_at = fact.failed_at + retry_delay_s(
                target.id.full_name, fact.failures, threshold, BackOff(), is_host_limit=fact.is_host_limit
            )
            if retry_at > now:
                yield retry_at if retry_at < math.inf else math.inf
            else:
                preload_key = observed.preload_key(target)
                started.add((target.env_key, preload_key))
                server = _template(app, target, preload_key, settings, now, rng)
                server = replace(server, edition=observed.edition)
                reason = f"preload {target.id.full_name}" if preload_key else "environment in use"
                reason = "upgrade" if serving is not None else reason
                yield actions.StartForkServer(server, reason)


def _builder(app: ApplicationFact, settings: Settings, now: float, rng: random.Random) -> ForkServerFact:
    env_key, environment = base_environment(app.goal)
    return _fork_server(app, env_key, environment, "", settings, now, rng)


def _template(
    app: ApplicationFact,
    target: DeploymentTarget,
    preload_key: str,
    settings: Settings,
    now: float,
    rng: random.Random,
) -> ForkServerFact:
    fact = replace(app, goal=app.active_goal or app.goal)
    server = _fork_server(fact, target.env_key, target.runtime_env, app.code_version, settings, now, rng)
    preload = target.id.name if preload_key else ""
    # one import serves deployments with different counts, and so has none of them
    variables = target.thread_variables if preload or target.imports_anew else {}
    order = replace(server.order, default_variables=variables, preload=preload)
    return replace(server, order=order, preload_key=preload_key)


def _fork_server(
    app: ApplicationFact,
    env_key: str,
    environment: dict[str, object],
    template_version: str,
    settings: Settings,
    now: float,
    rng: random.Random,
) -> ForkServerFact:
    document = app.goal.document
    identifier = random_hex(12, rng)
    order = BuildOrder(
        fork_server_id=identifier,
        build_id=f"{app.name}/{app.goal.deploy_id}/{identifier}",
        app=app.name,
        import_path=document.import_path,
        args=document.args,
        runtime_env=environment,
        application_file=f"{settings.state_dir}/code/{document.application_hash}.pkl"
        if document.application_hash
        else "",
        start_dir=settings.start_dir,
        python_path=document.python_path or settings.python_path,
        driver_path=document.driver_path,
        token=random_hex(32, rng),
        socket_path=fork_server_socket(settings.socket_dir, identifier),
        state_dir=settings.state_dir,
        socket_dir=settings.socket_dir,
        log_dir=settings.log_dir,
        origins={snapshot: local_path(uri) for uri, snapshot in app.goal.snapshots.items()},
        grpc_servicers=app.goal.grpc_servicers,
    )
    return ForkServerFact(
        fork_server_id=identifier,
        app=app.name,
        deploy_id=app.goal.deploy_id,
        is_builder=not template_version,
        env_key=env_key,
        order=order,
        created_at=now,
        template_version=template_version,
    )


def policy_actions(observed: Observed, now: float, rng: random.Random) -> Iterator[actions.Action | float]:
    """Ask the policies of user code that are due, those of an application about all of its deployments at once."""
    groups: dict[tuple[str, str], list[DeploymentTarget]] = {}
    for target in observed.targets.values():
        if target.policy is not None and target.capacity != 0:
            of_all = target.policy.get("of_application")
            groups.setdefault((target.id.app, "" if of_all else target.id.name), []).append(target)
    for (app_name, _), targets in sorted(groups.items()):
        keys = tuple((target.id.app, target.id.name) for target in targets)
        asked = [observed.questions.get(key, Question()) for key in keys]
        due = asked_next_at(targets, asked)
        server = template_for(targets[0], observed.applications[app_name], observed)
        if due > now:
            yield due
        elif any(one.ask_id for one in asked):
            # its answer is news, or late
            continue
        elif server is not None and server.result is not None and not server.result.error:
            ask = ask_of(random_hex(12, rng), targets, observed, now)
            yield actions.AskPolicy(server.fork_server_id, ask, keys)
            yield asked_next_at(targets, [Question(ask.ask_id, now)] * len(targets))
