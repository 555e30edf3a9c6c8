"""How an accepted document changes the goal, and every reason to refuse it. Pure: a refused change leaves no trace.

Source: Ray Serve REST API 2.5; which options conflict, and when the listener moves instead, is servd's.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace

from servd.controller.plan.data_plane import flag_options
from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.controller.plan.neighbours import built_prefix
from servd.controller.plan.observed import Observed
from servd.documents.control_plane import ApplicationDocument, GoalDocument
from servd.documents.runtime_env import check_application
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError, UnknownNameError
from servd.ground.ids import full_name_of
from servd.ground.names import check_name
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import DEFAULT_GRPC_PORT, Settings
from servd.ground.states import DeployMode, ProxyLocation

SCHEMAS = {DeployMode.SINGLE_APP: "ServeApplicationSchema", DeployMode.MULTI_APP: "ServeDeploySchema"}
SAME_PLACE = {ProxyLocation.HEAD_ONLY.value: ProxyLocation.EVERY_NODE.value}


@dataclass(frozen=True, slots=True)
class Situation:
    """What a change is checked against.

    http: options in force, or those that would be used when the data plane opens. present: names of the applications that
    exist now, DELETING ones included. deployed: (application, bare name) of every known deployment.
    deployed_at: wall time of the change, seconds. deploy_id: larger than any earlier one. prefixes: by name of each
    application that is built, None for one that is not exposed.
    """

    http: HttpGoal
    present: Collection[str]
    deployed: Collection[tuple[str, str]]
    deployed_at: float
    deploy_id: int
    prefixes: Mapping[str, str | None] = field(default_factory=dict)


def situation_of(goal: Goal, observed: Observed, settings: Settings, deployed_at: float) -> Situation:
    """The situation of this moment. deployed_at: wall time of the change, seconds."""
    return Situation(
        http=observed.data_plane.http or flag_options(settings),
        present={*observed.applications, *(app.name for app in goal.applications)},
        deployed={*observed.targets, *observed.deployments},
        deployed_at=deployed_at,
        deploy_id=goal.revision + 1,
        prefixes={app.name: built_prefix(app) for app in observed.applications.values()},
    )


def check_put(goal: Goal, document: GoalDocument, situation: Situation) -> HttpGoal:
    """Options of the data plane after the document.

    Raises:
        ConfigError: an option differs while applications are present, the other REST version owns the goal, or two
            deployments would get one full name.
    """
    http = merged_options(document.http, situation, compare_all=document.mode == DeployMode.MULTI_APP)
    if goal.mode != DeployMode.UNSET and goal.mode != document.mode:
        raise ConfigError(
            f"this instance runs a {SCHEMAS[DeployMode(goal.mode)]} config (mode {goal.mode}); a {SCHEMAS[document.mode]} "
            f"config cannot be mixed with it. Delete it first, or send a {SCHEMAS[DeployMode(goal.mode)]} document"
        )
    kept = [app.document for app in _kept(goal, document)]
    for app in document.applications:
        if kept and app.route_prefix_given and app.route_prefix is not None:
            _check_prefix(app, kept, situation)
        check_application(app.name, app.runtime_env, app.deployments)
    staying = {app.name for app in (*document.applications, *kept)}
    _check_full_names([*kept, *document.applications], [d for d in situation.deployed if d[0] in staying])
    return http


def _kept(goal: Goal, document: GoalDocument) -> list[ApplicationGoal]:
    """Applications that the document leaves alone."""
    if not document.keeps_others:
        return []
    # one without a name stands alone
    named = {"", *(app.name for app in document.applications)}
    return [app for app in goal.applications if app.document.stored is None and app.name not in named]


def put(
    goal: Goal,
    document: GoalDocument,
    http: HttpGoal,
    situation: Situation,
    snapshots: Mapping[str, Mapping[str, str]],
) -> Goal:
    """The goal after a checked document: it owns the whole set of applications, or of those that documents gave.

    Args:
        http: from `check_put`.
        snapshots: per application name, local directory as written -> directory of its snapshot.
    """
    wishes = (_wish(app, situation, snapshots.get(app.name, {}), http) for app in document.applications)
    return Goal(
        revision=goal.revision + 1,
        running=True,
        mode=document.mode,
        http=http,
        applications=_at(document.target_capacity, (*_kept(goal, document), *wishes)),
        asked=replace(document.http, ssl_keyfile_password=None),
        logging_config=document.logging_config,
        target_capacity=document.target_capacity,
    )


def _at(capacity: float | None, applications: Iterable[ApplicationGoal]) -> tuple[ApplicationGoal, ...]:
    return tuple(replace(app, target_capacity=capacity) for app in applications)


def put_application(
    goal: Goal, document: ApplicationDocument, http: HttpGoal, situation: Situation, snapshots: Mapping[str, str]
) -> Goal:
    """The goal with one application added or replaced; others and the mode stay. One without a name stays alone.

    Raises:
        ConfigError: another wanted application has the same route prefix, or two deployments would get one full name.
    """
    _check_name(document.name)
    others = goal.applications if document.name else ()
    if document.route_prefix_given and document.route_prefix is not None:
        _check_prefix(document, [other.document for other in others], situation)
    check_application(document.name, document.runtime_env, document.deployments)
    _check_full_names([document], situation.deployed)
    wish = _wish(document, situation, snapshots, http)
    kept = [wish if app.name == wish.name else app for app in others]
    if wish not in kept:
        kept.append(wish)
    applications = _at(goal.target_capacity, kept)
    return replace(goal, revision=goal.revision + 1, running=True, http=http, applications=applications)


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"application: {error}") from None


def _check_prefix(document: ApplicationDocument, others: Iterable[ApplicationDocument], situation: Situation) -> None:
    for other in others:
        # without one in its document, its code has said it: known as soon as it is built
        theirs = other.route_prefix if other.route_prefix_given else situation.prefixes.get(other.name)
        if other.name != document.name and theirs == document.route_prefix:
            raise ConfigError(
                f"route prefix {theirs!r} is already used by application {other.name!r}; choose another one"
            )


def check_rollback(goal: Goal, former: Goal, situation: Situation) -> HttpGoal | None:
    """Options of the data plane after going back to an earlier goal; None if Serve did not run then.

    Raises:
        ConfigError: as `check_put`.
    """
    if not former.running:
        return None
    http = merged_options(former.asked, situation, compare_all=former.mode == DeployMode.MULTI_APP)
    if DeployMode.UNSET not in (goal.mode, former.mode) and goal.mode != former.mode:
        raise ConfigError(
            f"revision {former.revision} is a {SCHEMAS[DeployMode(former.mode)]} config (mode {former.mode}), this instance "
            f"runs a {SCHEMAS[DeployMode(goal.mode)]} config (mode {goal.mode}); they cannot be mixed: delete it first"
        )
    documents = [app.document for app in former.applications]
    staying = {document.name for document in documents}
    _check_full_names(documents, [d for d in situation.deployed if d[0] in staying])
    return http


def rollback(goal: Goal, former: Goal, http: HttpGoal | None, situation: Situation) -> Goal:
    """The goal with everything as it was in `former`, its code included; counts set by `scale` are given up.

    Args:
        http: from `check_rollback`.
    """
    if not former.running:
        return Goal(revision=goal.revision + 1)
    wishes = (_wish(app.document, situation, app.snapshots, http) for app in former.applications)
    applications = _at(former.target_capacity, wishes)
    return replace(former, revision=goal.revision + 1, http=http, applications=applications)


def delete_application(goal: Goal, name: str) -> Goal:
    """The goal without that application; the same object if it is not in there."""
    if goal.application(name) is None:
        return goal
    return replace(
        goal, revision=goal.revision + 1, applications=tuple(app for app in goal.applications if app.name != name)
    )


def start_instance(goal: Goal, http: HttpGoal) -> Goal:
    """The goal of a running instance; the same object if it runs already."""
    if goal.running:
        return goal
    return replace(goal, revision=goal.revision + 1, running=True, http=http)


def delete(goal: Goal) -> Goal:
    """The emptied goal; the same object if Serve does not run."""
    return Goal(revision=goal.revision + 1) if goal.running else goal


def check_deployment(wish: ApplicationGoal, targets: Iterable[tuple[str, str]], deployment: str) -> None:
    """Refuse the name of a deployment that the application does not have.

    Args:
        targets: (application, bare name) of what builds gave.

    Raises:
        UnknownNameError: says which ones it has.
    """
    known = {name for owner, name in targets if owner == wish.name}
    known |= {override["name"] for override in wish.document.deployments}
    if deployment not in known:
        there = ", ".join(sorted(known)) or "none yet"
        raise UnknownNameError(f"application {wish.name!r} has no deployment {deployment!r}; it has {there}")


def scale(goal: Goal, app: str, deployment: str, count: int) -> Goal:
    """The goal with one deployment pinned to a count; no new revision. The application must be in the goal."""
    applications = tuple(
        replace(wish, scale={**wish.scale, deployment: count}) if wish.name == app else wish
        for wish in goal.applications
    )
    return replace(goal, applications=applications)


def merged_options(wish: HttpWish, situation: Situation, *, compare_all: bool = True) -> HttpGoal:
    """Options in force with those that were sent.

    Args:
        compare_all: False compares host and port only (V1).

    Raises:
        ConfigError: a sent option differs from the one in force while an application is present.
    """
    current = situation.http
    if situation.present:
        pairs = [("host", current.host, wish.host), ("port", current.port, wish.port)]
        if compare_all:
            pairs += [
                ("root path", current.root_path, wish.root_path),
                ("location", _place(current.location), _place(wish.location)),
            ]
        if current.grpc_port:
            # it may be opened at any time
            pairs.append(("gRPC port", current.grpc_port, wish.grpc_port))
        for name, there, sent in pairs:
            if sent is not None and sent != there:
                title = name if name == "gRPC port" else f"HTTP option {name}"
                raise ConfigError(
                    f"{title} is {there!r} and cannot be changed to {sent!r} while applications are deployed. "
                    "Shut down Serve first (DELETE, or `servd shutdown`), or leave the option out"
                )
    # what has no address may change at any time; other files make other proxies at the same address
    return replace(current, **{**wish.kept, "grpc_port": _grpc_port(current, wish)})


def _grpc_port(current: HttpGoal, wish: HttpWish) -> int:
    """Who asks for servicers wants a port."""
    if wish.grpc_port is not None:
        return wish.grpc_port
    return current.grpc_port or (DEFAULT_GRPC_PORT if wish.grpc_servicers else 0)


def _place(location: str | None) -> str | None:
    return SAME_PLACE.get(location, location) if location is not None else None


def _wish(
    document: ApplicationDocument, situation: Situation, snapshots: Mapping[str, str], http: HttpGoal | None
) -> ApplicationGoal:
    return ApplicationGoal(
        document=document,
        deploy_id=situation.deploy_id,
        deployed_at=situation.deployed_at,
        snapshots=dict(snapshots),
        grpc_servicers=http.grpc_servicers if http is not None and http.grpc_port else (),
    )


def _check_full_names(documents: Iterable[ApplicationDocument], deployed: Iterable[tuple[str, str]]) -> None:
    owners: dict[str, tuple[str, str]] = {full_name_of(*pair): pair for pair in deployed}
    for document in documents:
        for override in document.deployments:
            pair = (document.name, override["name"])
            full_name = full_name_of(*pair)
            owner = owners.setdefault(full_name, pair)
            if owner != pair:
                raise ConfigError(
                    f"full name {full_name!r} would belong to two deployments: {owner[1]!r} of application {owner[0]!r} "
                    f"and {pair[1]!r} of application {pair[0]!r}; rename one application"
                )
