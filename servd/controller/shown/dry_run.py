"""What a change of the goal would do, without doing it: every deployment as it is served now against what it would become.

How this works: the build that serves now is resolved with the new wish. Where the code stays, the same digests that the
reconciler compares tell what happens; where it changes, everything restarts, and what it then defines only its build can tell.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from servd.controller.plan import differences as differing
from servd.controller.plan.differences import code_fields, differences
from servd.controller.plan.facts import ApplicationFact, DeploymentFact
from servd.controller.plan.goal import ApplicationGoal, Goal, HttpGoal
from servd.controller.plan.observed import Observed
from servd.controller.plan.settle import fresh_fact
from servd.controller.plan.targets import (
    DeploymentTarget,
    digest,
    given_prefixes,
    resolve,
    wanted_count,
    without_empty_variables,
)
from servd.documents.control_plane import ApplicationChange, ChangePlan, DeploymentChange
from servd.documents.runtime_env import local_path
from servd.exceptions import DeployError
from servd.ground.ids import full_name_of

UNTOUCHED, RECONFIGURED, RESTARTED = "untouched", "reconfigured", "restarted"
REMOVED, ADDED = "removed", "added"
UNCHANGED, CHANGED = "unchanged", "changed"
NEW_CODE = "the new code is not built: it may define other deployments"
NOT_BUILT = "the application is not built: its deployments show once it is"

_COUNTS = ("num_replicas", "autoscaling_config", "scale", "target_capacity")


Files = Mapping[tuple[str, str], Mapping[str, str]]
"""(snapshot before, snapshot after) -> relative path -> what happened to that file."""


def replaced_snapshots(after: Goal, observed: Observed) -> set[tuple[str, str]]:
    """The pairs of snapshots that `compare` has to know the differences of."""
    served = [(observed.applications.get(wish.name), wish) for wish in after.applications]
    return {
        pair
        for fact, wish in served
        if fact is not None and fact.active_goal is not None
        for pair in differing.replaced_snapshots(fact.active_goal, wish).values()
    }


def compare(
    before: Goal, after: Goal, http: HttpGoal | None, observed: Observed, files: Files | None = None
) -> ChangePlan:
    """What would happen if `after` became the goal now.

    Args:
        http: options in force.
        observed: facts, with `before` settled into them; not changed.
        files: what differs between the pairs that `replaced_snapshots` names; None = nobody looked.
    """
    apps = {wish.name: _application(wish, observed, files or {}) for wish in after.applications}
    for name, fact in observed.applications.items():
        if name not in apps and not fact.deleting:
            apps[name] = ApplicationChange(REMOVED, (), "", _all(fact, observed, REMOVED))
    for wish in before.applications:
        apps.setdefault(wish.name, ApplicationChange(REMOVED, (), "", {}))
    return ChangePlan(before.revision, _http_changes(http, after.http), apps)


def _http_changes(old: HttpGoal | None, new: HttpGoal | None) -> dict[str, tuple[Any, Any]]:
    before = asdict(old) if old is not None else {}
    after = asdict(new) if new is not None else {}
    # servicers show as a change of the applications
    names = [name for name in after or before if name != "grpc_servicers"]
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _application(wish: ApplicationGoal, observed: Observed, files: Files) -> ApplicationChange:
    fact = observed.applications.get(wish.name)
    if fact is None or fact.deleting:
        return ApplicationChange(ADDED, (), NOT_BUILT, dict(_listed(wish)))
    if fact.active is None or fact.active_goal is None:
        return ApplicationChange(CHANGED, (), NOT_BUILT, dict(_listed(wish)))
    code = code_fields(fact.active_goal, wish)
    fields = [*code, *_other_fields(fact.active_goal, wish)]
    sources = dict(_sources(fact.active_goal, wish, files))
    version = digest("new code", fact.code_version) if code else fact.code_version
    try:
        targets = resolve(wish, fact.active, version)
    except DeployError as error:
        note = f"{NEW_CODE}; {error}, now" if code else f"it would fail: {error}"
        there = _all(fact, observed, RESTARTED if code else UNTOUCHED)
        return ApplicationChange(CHANGED, tuple(fields), note, there, sources)
    changes = dict(_deployments(wish, targets, tuple(code), observed))
    is_same = not fields and all(c.action == UNTOUCHED and not c.fields for c in changes.values())
    return ApplicationChange(
        UNCHANGED if is_same else CHANGED, tuple(fields), NEW_CODE if code else "", changes, sources
    )


def _sources(old: ApplicationGoal, new: ApplicationGoal, files: Files) -> Iterator[tuple[str, str]]:
    """Path on this host of each source file that differs, and how."""
    for directory, pair in differing.replaced_snapshots(old, new).items():
        for path, what in files.get(pair, {}).items():
            yield f"{local_path(directory).rstrip('/')}/{path}", what


def _listed(wish: ApplicationGoal) -> Iterator[tuple[str, DeploymentChange]]:
    """Deployments of an unbuilt application, as far as its document names them."""
    for override in wish.document.deployments:
        name = full_name_of(wish.name, override["name"])
        yield name, DeploymentChange(override["name"], ADDED, (), 0, override.get("num_replicas"))


def _all(fact: ApplicationFact, observed: Observed, action: str) -> dict[str, DeploymentChange]:
    """One action for every deployment that there is."""
    found = {}
    for key, target in observed.targets.items():
        if key[0] == fact.name:
            count = wanted_count(target, observed.deployments.get(key))
            after = {REMOVED: 0, UNTOUCHED: count}.get(action)
            found[target.id.full_name] = DeploymentChange(target.id.name, action, (), count, after)
    return found


def _deployments(
    wish: ApplicationGoal, targets: tuple[DeploymentTarget, ...], code: tuple[str, ...], observed: Observed
) -> Iterator[tuple[str, DeploymentChange]]:
    for target in targets:
        key = (wish.name, target.id.name)
        old, fact = observed.targets.get(key), observed.deployments.get(key)
        if old is None:
            yield target.id.full_name, DeploymentChange(target.id.name, ADDED, (), 0, wanted_count(target, None))
            continue
        fields = [*code, *_option_fields(old, target)]
        fields += [] if old.pinned == target.pinned else ["scale"]
        fields += [] if old.capacity == target.capacity else ["target_capacity"]
        if old.version != target.version:
            action = RESTARTED
            fields += _environment_fields(old, target) if not code else []
        elif [field for field in fields if field.partition(".")[0] not in _COUNTS]:
            action = RECONFIGURED
        else:
            action = UNTOUCHED
        before, after = wanted_count(old, fact), _count_after(old, target, fact)
        yield target.id.full_name, DeploymentChange(target.id.name, action, tuple(fields), before, after)


def _count_after(old: DeploymentTarget, new: DeploymentTarget, fact: DeploymentFact | None) -> int:
    return wanted_count(new, fact if old.key == new.key else fresh_fact(new, fact))


def _option_fields(old: DeploymentTarget, new: DeploymentTarget) -> Iterator[str]:
    """Options that differ, dotted where they are objects; the environment apart."""
    for name in {**old.options, **new.options}:
        before, after = old.options.get(name), new.options.get(name)
        if name == "ray_actor_options":
            before, after = _without_environment(before), _without_environment(after)
        yield from differences(name, before, after)


def _without_environment(options: Any) -> dict[str, Any]:
    found = {key: value for key, value in (options or {}).items() if key != "runtime_env"}
    return {"num_cpus": 1.0, **{k: float(v) if isinstance(v, int | float) else v for k, v in found.items()}}


def _environment_fields(old: DeploymentTarget, new: DeploymentTarget) -> Iterator[str]:
    before, after = without_empty_variables(old.runtime_env), without_empty_variables(new.runtime_env)
    yield from (f"ray_actor_options.{field}" for field in differences("runtime_env", before, after))


def _other_fields(old: ApplicationGoal, new: ApplicationGoal) -> Iterator[str]:
    was, wish = old.document, new.document
    before, after = ((d.route_prefix_given, d.route_prefix, given_prefixes(d)) for d in (was, wish))
    if before != after:
        yield "route_prefix"
    yield from differences("logging_config", was.logging_config, wish.logging_config)
