"""What applications must not share, route prefixes and full names of deployments, and who has one while it changes hands.

A build that has ended is judged once it is known what its neighbours are about to give up: an objection stays until the next
document, so none may be of something that passes by itself.
"""

from collections.abc import Collection

from servd.controller.plan.facts import ApplicationFact, ForkServerFact
from servd.controller.plan.observed import Observed
from servd.controller.plan.targets import DeploymentTarget, wanted_prefix
from servd.exceptions import DeployError
from servd.ground.ids import full_name_of
from servd.ground.states import ReplicaState
from servd.wire.build_messages import BuildResult


def ended_build(app: ApplicationFact, observed: Observed) -> ForkServerFact | None:
    """The fork server that has built the latest deploy of an application."""
    return next(
        (
            f
            for f in observed.fork_servers.in_group(app.name)
            if f.is_builder and f.deploy_id == app.goal.deploy_id and f.result is not None and not f.stopping
        ),
        None,
    )


def built_prefix(app: ApplicationFact) -> str | None:
    """Prefix of an application whose build is active; None = not exposed or not built."""
    if app.active is None or app.active_goal is None:
        return None
    return wanted_prefix(app.active_goal.document, app.active)


def route_prefixes(observed: Observed) -> dict[str, str]:
    """Prefix under which the active build of each application is reached, by name; those that are not exposed are left out.

    One whose document gives its prefix up keeps it until its next build is active, but not beside one that shall have it; of two
    that give it up, the one that was given it last has it.
    """
    owners: dict[str, tuple[bool, int, str]] = {}
    for app in observed.applications.values():
        prefix = built_prefix(app)
        if prefix is not None and not app.deleting:
            owners[prefix] = max(_claim(app, prefix), owners.get(prefix, (False, -1, "")))
    return {name: prefix for prefix, (_, _, name) in owners.items()}


def _claim(app: ApplicationFact, prefix: str) -> tuple[bool, int, str]:
    """Of those that are built with a prefix, the greatest has it."""
    return not _gives_up(app, prefix), app.active_goal.deploy_id if app.active_goal else 0, app.name


def check_neighbours(
    app: ApplicationFact, result: BuildResult, targets: Collection[DeploymentTarget], observed: Observed
) -> bool:
    """Whether a build may become active as far as other applications go; False = that is known later, after news of one.

    Raises:
        DeployError: one of them has what it needs, and keeps it.
    """
    waits = False
    prefix = wanted_prefix(app.goal.document, result)
    for other in observed.applications.values():
        if prefix is None or other.name == app.name or other.deleting or built_prefix(other) != prefix:
            continue
        if _gives_up(other, prefix):
            continue
        if _is_undecided(other, observed):
            waits = True
        elif _keeps(other, prefix, observed):
            raise DeployError(f"route prefix {prefix!r} is already used by application {other.name!r}")
    names = {target.id.full_name: target.id for target in targets}
    for key in {*observed.targets, *observed.replicas.deployments()}:
        identifier = names.get(full_name_of(*key))
        if key[0] == app.name or identifier is None:
            continue
        if _is_leaving(key, observed):
            waits = waits or bool(observed.replicas_of(*key))
            continue
        raise DeployError(
            f"full name {identifier.full_name!r} of deployment {identifier.name!r} is already used "
            f"by deployment {key[1]!r} of application {key[0]!r}"
        )
    return not waits


def _gives_up(app: ApplicationFact, prefix: str) -> bool:
    """Whether its document says that it is to have another one."""
    document = app.goal.document
    return document.route_prefix_given and document.route_prefix != prefix


def _is_undecided(app: ApplicationFact, observed: Observed) -> bool:
    """Whether its code may say another prefix as soon as it is built."""
    is_told = app.goal.document.route_prefix_given or app.built_deploy_id >= app.goal.deploy_id
    return not is_told and ended_build(app, observed) is None


def _keeps(app: ApplicationFact, prefix: str, observed: Observed) -> bool:
    """Whether it has the prefix after its latest build, too."""
    builder = ended_build(app, observed) if app.built_deploy_id < app.goal.deploy_id else None
    if builder is None or builder.result is None or builder.result.error:
        return True
    return wanted_prefix(app.goal.document, builder.result) == prefix


def _is_leaving(key: tuple[str, str], observed: Observed) -> bool:
    """Whether a deployment is on its way out: nothing but its replicas' end is waited for."""
    app = observed.applications.get(key[0])
    if app is None or app.deleting:
        return True
    replicas = observed.replicas_of(*key)
    return key not in observed.targets and all(replica.state is ReplicaState.STOPPING for replica in replicas)
