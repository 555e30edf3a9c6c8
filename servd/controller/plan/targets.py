"""From a build and the document's overrides to what each deployment shall be.

How this works: options of a deployment are defaults, then code, then the override of the document; `ray_actor_options` of the
document replace those of the code as a whole; the runtime environment is the application's, shallowly updated. Three digests
say what a change does: `version` (restart), `config_version` (reconfigure in place), everything else is told or counted.

Source: Ray Serve 2.5, deployment versions; servd's own options.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from servd.controller.plan.autoscaler import at_capacity, bounds_at, first_target, full_config
from servd.controller.plan.facts import DeploymentFact
from servd.controller.plan.goal import ApplicationGoal
from servd.controller.plan.resources import Need
from servd.controller.plan.restarts import MAX_FAILURES, failure_threshold
from servd.controller.plan.rollout import ROLLING_SHARE
from servd.documents.control_plane import ApplicationDocument
from servd.exceptions import DeployError
from servd.ground.ids import DeploymentID
from servd.ground.quick_dataclass import dataclass
from servd.wire.build_messages import BuildResult, BuiltDeployment
from servd.wire.messages import ReplicaGoal

DEFAULTS: dict[str, Any] = {
    "num_replicas": 1,
    "max_concurrent_queries": 100,
    "user_config": None,
    "autoscaling_config": None,
    "graceful_shutdown_wait_loop_s": 2.0,
    "graceful_shutdown_timeout_s": 20.0,
    "health_check_period_s": 10.0,
    "health_check_timeout_s": 30.0,
    "ray_actor_options": {},
    "is_driver_deployment": False,
    "max_queued_requests": 10_000,
    "request_timeout_s": None,
    "cancel_on_disconnect": True,
    "max_sync_threads": 1,
    "memory_limit_bytes": None,
    "start_method": "fork",
    "preload": False,
}
OWN_OPTIONS = (
    "max_queued_requests",
    "request_timeout_s",
    "cancel_on_disconnect",
    "max_sync_threads",
    "memory_limit_bytes",
    "start_method",
    "preload",
    "logging_config",
    "rolling_update_percentage",
    "max_surge_percent",
    "max_constructor_retry_count",
    "backpressure_config",
    "request_router_config",
)
LONGEST_REPORT_PERIOD_S, SHORTEST_REPORT_PERIOD_S = 0.25, 0.02
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """What one deployment shall be. runtime_env: with local directories replaced by their snapshots.

    autoscaling: full config, None when the count is fixed. pinned: count set by `scale`, None if not. options: effective
    values by 2.5 names. shown: `deployment_config` of GET V2, without the count keys' conditions applied yet.
    capacity: percent of its counts that is wanted, 0 to 100, None = all; the bounds of `autoscaling` have it applied.
    imports_anew: its replicas are forked from an import with its own thread counts: one with the host's left threads that forbid
    to fork, which may have been pools.
    """

    id: DeploymentID
    version: str
    config_version: str
    env_key: str
    runtime_env: dict[str, Any]
    num_replicas: int
    autoscaling: dict[str, Any] | None
    pinned: int | None
    options: dict[str, Any]
    shown: dict[str, Any]
    key: str
    imports_anew: bool = False
    capacity: float | None = None

    @property
    def drain_timeout_s(self) -> float:
        """Seconds a draining replica may take before it is killed."""
        return float(self.options["graceful_shutdown_timeout_s"])

    @property
    def rolling_share(self) -> float:
        """Share of its replicas that an update takes at a time, in (0, 1]."""
        return float(self.options.get("rolling_update_percentage", ROLLING_SHARE))

    @property
    def surge_percent(self) -> int | None:
        """Replicas that may live beyond the target during an update, percent of it; 0 = old ones stop first, None = a step."""
        return self.options.get("max_surge_percent")

    @property
    def follows_load(self) -> bool:
        """Whether its count follows from how busy its replicas are."""
        return self.autoscaling is not None and self.pinned is None and self.policy is None

    @property
    def policy(self) -> dict[str, Any] | None:
        """`policy_function`, `policy_kwargs` and whether it is `of_application`, where user code decides."""
        return self.autoscaling.get("policy") if self.autoscaling is not None and self.pinned is None else None

    @property
    def backpressure(self) -> tuple[int, float | None]:
        """Status and seconds of `Retry-After` of requests that find the line full."""
        config = self.options.get("backpressure_config") or {}
        return config.get("status_code", 503), config.get("retry_after_s")

    @property
    def need(self) -> Need:
        """What one replica needs of the host's pool."""
        options = self.options["ray_actor_options"] or {}
        return Need(float(options.get("num_cpus", 1.0) or 0.0), float(options.get("num_gpus") or 0.0))

    def preload_key(self, unfit_version: str) -> str:
        """What its template's instance is, "" if it needs a template that constructs none.

        Args:
            unfit_version: the version whose replicas turned out not to be forkable after the constructor, "" for none.
        """
        preloads = self.options["preload"] and unfit_version != self.version
        return f"{self.id.name} {self.version}" if preloads else ""

    @property
    def thread_variables(self) -> dict[str, str]:
        """Thread counts that follow `num_cpus` where the user wrote it."""
        cpus = (self.options["ray_actor_options"] or {}).get("num_cpus")
        return thread_variables(cpus)

    def replica_goal(self, replica_id: str, rank: int = 0, world_size: int = 1) -> ReplicaGoal:
        """The goal of one replica of this target; but for who it is, all have the same. See `ReplicaGoal`."""
        options = self.options
        user_config = options["user_config"]
        return ReplicaGoal(
            replica_id=replica_id,
            config_version=self.config_version,
            user_config="" if user_config is None else json.dumps(user_config),
            max_concurrent_queries=options["max_concurrent_queries"],
            health_check_period_s=float(options["health_check_period_s"]),
            health_check_timeout_s=float(options["health_check_timeout_s"]),
            graceful_shutdown_timeout_s=float(options["graceful_shutdown_timeout_s"]),
            cancel_on_disconnect=options["cancel_on_disconnect"],
            memory_limit_bytes=options["memory_limit_bytes"] or 0,
            logging_config=options["logging_config"],
            report_period_s=self.report_period_s,
            rank=rank,
            world_size=world_size,
        )

    @property
    def report_period_s(self) -> float:
        """Seconds between two samples of a replica's load: 0.25, or less where the autoscaling config asks for it."""
        asked_s = self.autoscaling["metrics_interval_s"] if self.autoscaling is not None else LONGEST_REPORT_PERIOD_S
        return float(max(min(asked_s, LONGEST_REPORT_PERIOD_S), SHORTEST_REPORT_PERIOD_S))


def wanted_count(target: DeploymentTarget, fact: DeploymentFact | None) -> int:
    """Replicas that the deployment shall have now."""
    if target.autoscaling is None or target.pinned is not None:
        return at_capacity(target.num_replicas if target.pinned is None else target.pinned, target.capacity)
    if fact is None or fact.desired is None:
        return first_target(target.autoscaling)
    # decided at another capacity, perhaps
    low, high = target.autoscaling["min_replicas"], target.autoscaling["max_replicas"]
    return int(max(low, min(high, fact.desired)))


def failures_allowed(target: DeploymentTarget, fact: DeploymentFact | None) -> int:
    """Failed starts in a row after which the deployment counts as failing."""
    return failure_threshold(
        wanted_count(target, fact), target.options.get("max_constructor_retry_count", MAX_FAILURES)
    )


def thread_variables(num_cpus: float | None) -> dict[str, str]:
    """Thread counts of number-crunching libraries, by their variables; none if the user did not write `num_cpus`."""
    if num_cpus is None:
        return {}
    return dict.fromkeys(THREAD_VARIABLES, str(max(math.ceil(num_cpus), 1)))


def digest(*values: Any) -> str:
    """Stable digest of JSON values, 16 hex digits."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_empty_variables(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The environment as it counts in comparisons: an empty `env_vars` is none."""
    return {key: value for key, value in runtime_env.items() if value or key != "env_vars"}


def merge_runtime_env(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """`base` shallowly updated; `env_vars` merged key by key and always present afterwards.

    `pip` and `uv` are two spellings of one list: the update's takes the place of the base's.
    """
    variables = {**(base.get("env_vars") or {}), **(update.get("env_vars") or {})}
    rivals = {"pip": "uv", "uv": "pip"}
    kept = {key: value for key, value in base.items() if update.get(rivals.get(key, "")) is None}
    return {**kept, **update, "env_vars": variables}


def resolve_directories(runtime_env: Mapping[str, Any], snapshots: Mapping[str, str]) -> dict[str, Any]:
    """The environment with every snapshotted local directory replaced by its snapshot's path."""
    resolved = dict(runtime_env)
    if resolved.get("working_dir"):
        resolved["working_dir"] = snapshots.get(resolved["working_dir"], resolved["working_dir"])
    if resolved.get("py_modules"):
        resolved["py_modules"] = [snapshots.get(item, item) for item in resolved["py_modules"]]
    return resolved


def base_environment(app: ApplicationGoal) -> tuple[str, dict[str, Any]]:
    """(env_key, environment with snapshots) of an application's builder."""
    resolved = resolve_directories(app.document.runtime_env, app.snapshots)
    return digest(without_empty_variables(resolved)), resolved


def resolve(app: ApplicationGoal, build: BuildResult, code_version: str) -> tuple[DeploymentTarget, ...]:
    """Targets of all deployments of a build, dependencies first, ingress last.

    Args:
        app: the wish with its overrides and snapshots.
        build: a successful build of it.
        code_version: of the replicas; differs from the build's for applications shipped by value.

    Raises:
        DeployError: an override names a deployment that the build does not have, or gives a prefix to another one than the
            ingress; or a deployment scales by itself where the document gives that to somebody else.
    """
    overrides = {override["name"]: override for override in app.document.deployments}
    unknown = [name for name in overrides if name not in {d.name for d in build.deployments}]
    if unknown:
        there = ", ".join(d.name for d in build.deployments)
        raise DeployError(
            f"application {app.name}: the document overrides {', '.join(unknown)}, but its only deployments are {there}"
        )
    for name, prefix in given_prefixes(app.document):
        if name != build.ingress:
            raise DeployError(f"only the ingress {build.ingress} can have a route_prefix, {name} has {prefix!r}")
    is_unsafe = bool(build.fork_unsafe)
    targets = tuple(
        _target(app, built, overrides.get(built.name), code_version, is_unsafe=is_unsafe) for built in build.deployments
    )
    scaled = [target.id.name for target in targets if target.autoscaling is not None]
    if app.document.external_scaler_enabled and scaled:
        raise DeployError(f"external_scaler_enabled excludes autoscaling, which {', '.join(scaled)} has in the code")
    return targets


def wanted_prefix(document: ApplicationDocument, build: BuildResult) -> str | None:
    """Route prefix of a built application: the document's, else that of the override of its ingress, else the code's."""
    if document.route_prefix_given:
        return document.route_prefix
    return dict(given_prefixes(document)).get(build.ingress, build.route_prefix)


def likely_prefix(document: ApplicationDocument) -> str | None:
    """Route prefix of an application that is not built yet, as far as its document tells."""
    if document.route_prefix_given:
        return document.route_prefix
    return next((prefix for _, prefix in given_prefixes(document)), "/")


def given_prefixes(document: ApplicationDocument) -> list[tuple[str, str]]:
    """Deployment and prefix of every override that has one."""
    return [
        (item["name"], item["route_prefix"]) for item in document.deployments if item.get("route_prefix") is not None
    ]


def _target(
    app: ApplicationGoal,
    built: BuiltDeployment,
    override: Mapping[str, Any] | None,
    code_version: str,
    *,
    is_unsafe: bool,
) -> DeploymentTarget:
    options = _effective_options(app, built, override or {})
    actor_options = dict(options["ray_actor_options"])
    own_env = actor_options.pop("runtime_env", None) or {}
    if override is not None or own_env:
        shown_env = merge_runtime_env(app.document.runtime_env, own_env)
    else:
        shown_env = dict(app.document.runtime_env)
    resolved = resolve_directories(shown_env, app.snapshots)
    # 1 and 1.0 are one amount: a document's spelling must not restart anything
    actor_options = {key: float(v) if isinstance(v, int | float) else v for key, v in actor_options.items()}
    shown_options = {"runtime_env": shown_env, "num_cpus": 1.0, **actor_options}
    autoscaling = options["autoscaling_config"]
    if autoscaling is not None:
        autoscaling = full_config(autoscaling, app.document.autoscaling_policy)
    identifier = DeploymentID(built.name, app.name)
    version = digest(
        code_version,
        {**actor_options, "num_cpus": shown_options["num_cpus"]},
        without_empty_variables(resolved),
        [options[name] for name in ("max_sync_threads", "memory_limit_bytes", "start_method")],
        options.get("version"),
        *(["preload"] if options["preload"] else []),
    )
    config_version = digest(options["user_config"], float(options["graceful_shutdown_wait_loop_s"]))
    pinned, capacity = app.scale.get(built.name), app.target_capacity
    variables = thread_variables(actor_options.get("num_cpus"))
    imports_anew = bool(variables and is_unsafe and options["start_method"] == "fork")
    return DeploymentTarget(
        id=identifier,
        version=version,
        config_version=config_version,
        env_key=digest(without_empty_variables(resolved), *([variables] if imports_anew else [])),
        runtime_env=resolved,
        num_replicas=options["num_replicas"],
        autoscaling=autoscaling and bounds_at(autoscaling, capacity),
        pinned=pinned,
        options=options,
        shown=_shown(identifier, options, shown_options, autoscaling, pinned, built, override or {}),
        # without the capacity: what is remembered, the autoscaler's count first of all, is as true at another one
        key=digest(version, config_version, autoscaling, options["num_replicas"], pinned, options),
        imports_anew=imports_anew,
        capacity=capacity,
    )


def _effective_options(app: ApplicationGoal, built: BuiltDeployment, override: Mapping[str, Any]) -> dict[str, Any]:
    sent = {key: value for key, value in override.items() if key not in ("name", "route_prefix")}
    if sent.get("num_replicas", 0) is None:
        del sent["num_replicas"]
    code = {key: value for key, value in built.options.items() if value is not None or key == "user_config"}
    options = {**DEFAULTS, **code, **sent}
    options["is_driver_deployment"] = built.is_driver_deployment or options["is_driver_deployment"]
    options["ray_actor_options"] = options["ray_actor_options"] or {}
    _check_preload(built, options)
    # the innermost one wins, as a whole
    options["logging_config"] = options.get("logging_config") or app.document.logging_config or {}
    return options


def _check_preload(built: BuiltDeployment, options: Mapping[str, Any]) -> None:
    if not options["preload"]:
        return
    if built.is_function:
        raise DeployError(
            f"deployment {built.name} is a function and constructs nothing: `preload` is for classes; what a function needs is "
            "loaded once where its module loads it"
        )
    if options["start_method"] == "spawn":
        raise DeployError(
            f"deployment {built.name} has `preload` and `start_method: spawn`: replicas of an instance that is constructed once "
            "are forked; leave one of the two out"
        )


def _shown(
    identifier: DeploymentID,
    options: Mapping[str, Any],
    actor_options: Mapping[str, Any],
    autoscaling: Mapping[str, Any] | None,
    pinned: int | None,
    built: BuiltDeployment,
    override: Mapping[str, Any],
) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": identifier.full_name}
    if pinned is not None:
        shown["num_replicas"] = pinned
    elif autoscaling is None:
        shown["num_replicas"] = options["num_replicas"]
    shown["max_concurrent_queries"] = options["max_concurrent_queries"]
    shown["user_config"] = options["user_config"]
    if autoscaling is not None:
        shown["autoscaling_config"] = {
            key: value
            for key, value in autoscaling.items()
            if value is not None and not (key == "policy" and value.get("of_application"))
        }
    for name in ("graceful_shutdown_wait_loop_s", "graceful_shutdown_timeout_s"):
        shown[name] = float(options[name])
    for name in ("health_check_period_s", "health_check_timeout_s"):
        shown[name] = float(options[name])
    shown["ray_actor_options"] = dict(actor_options)
    shown["is_driver_deployment"] = options["is_driver_deployment"]
    for name in OWN_OPTIONS:
        if name in options and (name in override or name in built.options):
            shown[name] = options[name]
    return shown
