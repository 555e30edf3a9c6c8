"""Bodies in today's dialect, made from the same view of the instance as those of 2.5. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, cast

from servd.documents import runtime_env
from servd.documents.control_plane import (
    ApplicationView,
    DeadReplicaView,
    DeploymentView,
    InstanceView,
    ReplicaView,
)
from servd.documents.controller_views import ControllerHealth, ScalingView
from servd.ground.states import DeploymentStanding, ProxyLocation, ProxyStatus
from servd.observability.logs import replica_file
from servd.rest import today_shapes as shapes
from servd.rest.bodies import CONTROLLER_NAME

RAY_VERSION = "2.60.0"
_RENAMED = {"max_concurrent_queries": "max_ongoing_requests"}
_AUTOSCALING_RENAMED = {"target_num_ongoing_requests_per_replica": "target_ongoing_requests"}
_UNKNOWN = frozenset(
    {
        "is_driver_deployment",
        "request_timeout_s",
        "cancel_on_disconnect",
        "max_sync_threads",
        "memory_limit_bytes",
        "start_method",
        "preload",
        "max_constructor_retry_count",
    }
)
"""Options of deployments that today's Ray Serve does not have."""
_MOVES = {
    DeploymentStanding.UPSCALING: ("UPSCALING", "Scaling up from {before} to {after} replicas."),
    DeploymentStanding.DOWNSCALING: ("DOWNSCALING", "Scaling down from {before} to {after} replicas."),
}


def version_body(view: InstanceView) -> shapes.TodayVersion:
    """What today's command line asks before every call."""
    session = f"session_{view.node_id[:16]}"
    return {"version": "4", "ray_version": RAY_VERSION, "ray_commit": "servd", "session_name": session}


def details(view: InstanceView, source: str | None = None) -> shapes.TodayInstance:
    """GET /api/serve/applications/.

    Args:
        source: "declarative" or "imperative": only applications that came that way; None for all.
    """
    if not view.running:
        return {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}
    applications = {app.name: _application(view, app) for app in view.applications if source in (None, _source(app))}
    log = f"/serve/controller_{view.controller_pid}.log"
    http = view.http
    found: shapes.TodayInstance = {
        "controller_info": _actor(view, view.controller_actor_id, CONTROLLER_NAME, view.controller_worker_id, log),
        "proxy_location": _location(http.location),
        "http_options": {
            "host": http.host,
            "port": http.port,
            "root_path": http.root_path,
            "request_timeout_s": http.request_timeout_s or None,
            "ssl_certfile": http.ssl_certfile or None,
            "ssl_keyfile": http.ssl_keyfile or None,
            "ssl_ca_certs": http.ssl_ca_certs or None,
        },
        "proxies": _proxies(view),
        "applications": applications,
        "target_capacity": view.target_capacity,
        "target_groups": _target_groups(view),
        "controller_health_metrics": _health(view.health),
        "restores_unset_config_options": True,
    }
    if http.grpc:
        found["grpc_options"] = http.grpc
    return found


def _location(location: str) -> ProxyLocation:
    # today's clients know no other names; one host is every node
    known = (ProxyLocation.NO_SERVER, ProxyLocation.HEAD_ONLY)
    return ProxyLocation(location) if location in known else ProxyLocation.EVERY_NODE


def _actor(view: InstanceView, actor_id: str, name: str, worker_id: str, log_file_path: str) -> shapes.TodayActor:
    return {
        "node_id": view.node_id,
        "node_ip": view.node_ip,
        "node_instance_id": "",
        "actor_id": actor_id or None,
        "actor_name": name,
        "worker_id": worker_id or None,
        "log_file_path": log_file_path,
    }


def _proxy_name(view: InstanceView) -> str:
    return f"SERVE_PROXY_ACTOR-{view.node_id}"


def _proxies(view: InstanceView) -> dict[str, shapes.TodayProxy]:
    """One entry for this host: healthy if any proxy is."""
    if view.http.location == ProxyLocation.NO_SERVER:
        return {}
    by_merit = (ProxyStatus.HEALTHY, ProxyStatus.STARTING, ProxyStatus.UNHEALTHY)
    best = min(view.proxies, key=lambda proxy: by_merit.index(proxy.status), default=None)
    ids = (best.actor_id, best.worker_id) if best else ("", "")
    actor = _actor(view, ids[0], _proxy_name(view), ids[1], f"/serve/http_proxy_{view.node_ip}.log")
    return {view.node_id: {**actor, "status": best.status if best else ProxyStatus.STARTING}}


def _target_groups(view: InstanceView) -> list[shapes.TodayTargetGroup]:
    if not view.http.listening:
        return []
    return [
        {
            "targets": [
                {"ip": view.node_ip, "port": view.http.port, "instance_id": "", "name": _proxy_name(view)},
            ],
            "route_prefix": "/",
            "protocol": "HTTP",
            "app_name": "",
            "ingress_request_router_targets": [],
            "ingress_deployment_name": "",
        }
    ]


def _health(health: ControllerHealth) -> shapes.TodayHealth:
    uptime_s = health.at - health.started_at
    turn = health.turn
    return {
        "timestamp": health.at,
        "controller_start_time": health.started_at,
        "uptime_s": uptime_s,
        "last_control_loop_time": health.last_turn_at,
        "num_control_loops": health.turns,
        "loop_duration_s": {"mean": turn.mean, "std": turn.std, "min": turn.min, "max": turn.max},
        "loops_per_second": health.turns / uptime_s if uptime_s > 0 else 0.0,
        "num_asyncio_tasks": health.tasks,
        "process_memory_mb": health.memory_bytes / 2**20,
    }


def _source(app: ApplicationView) -> Literal["declarative", "imperative"]:
    return "declarative" if app.is_declarative else "imperative"


def _application(view: InstanceView, app: ApplicationView) -> shapes.TodayApplication:
    return {
        "name": app.name,
        "route_prefix": app.route_prefix,
        "docs_path": app.docs_path,
        "status": app.standing,
        "message": app.standing_message,
        "last_deployed_time_s": app.last_deployed_time_s,
        "deployed_app_config": None if app.config is None else stored_config(app.config),
        "source": _source(app),
        "deployments": {one.bare_name: _deployment(view, app.name, one) for one in app.deployments},
        "external_scaler_enabled": app.external_scaler_enabled,
        "deployment_topology": _topology(app),
    }


def _topology(app: ApplicationView) -> shapes.TodayTopology | None:
    if not app.ingress:
        return None
    nodes: dict[str, shapes.TodayNode] = {
        one.bare_name: {
            "name": one.bare_name,
            "app_name": app.name,
            "outbound_deployments": [{"name": name, "app_name": app.name} for name in one.outbound],
            "is_ingress": one.bare_name == app.ingress,
        }
        for one in app.deployments
    }
    return {"app_name": app.name, "nodes": nodes, "ingress_deployment": app.ingress}


def _deployment(view: InstanceView, app: str, one: DeploymentView) -> shapes.TodayDeployment:
    body: shapes.TodayDeployment = {
        "name": one.bare_name,
        "status": one.standing,
        "status_trigger": one.status_trigger,
        "message": one.message or _move(one),
        "deployment_config": _config(one),
        "target_num_replicas": one.target_num_replicas,
        "required_resources": _resources(one.config.get("ray_actor_options") or {}),
        "replicas": [_replica(view, app, one, replica) for replica in one.replicas],
        "recent_dead_replicas": [_dead(view, app, one, dead) for dead in one.recent_dead],
    }
    if one.autoscaling is not None:
        body["autoscaling_detail"] = _autoscaling(one)
    return body


def _move(one: DeploymentView) -> str:
    if one.standing not in _MOVES:
        return ""
    counts = Counter(str(replica.state) for replica in one.replicas)
    there = counts["RUNNING"] + counts["STOPPING"]
    before = one.decisions[-1].before if one.autoscaling is not None and one.decisions else there
    return _MOVES[one.standing][1].format(before=before, after=one.target_num_replicas)


def _autoscaling(one: DeploymentView) -> shapes.TodayAutoscaling:
    status = _MOVES[one.standing][0] if one.standing in _MOVES else "STABLE"
    return {
        "scaling_status": cast('Literal["UPSCALING", "DOWNSCALING", "STABLE"]', status),
        "decisions": [*map(_decision, one.decisions), *_failed_policy(one)],
    }


def _decision(decision: ScalingView) -> shapes.TodayDecision:
    return {
        "timestamp_s": decision.at,
        "reason": decision.reason,
        "prev_num_replicas": decision.before,
        "curr_num_replicas": decision.after,
    }


def _failed_policy(one: DeploymentView) -> list[shapes.TodayDecision]:
    """That its policy gives no answer, as the decision to leave the count as it is."""
    policy = (one.autoscaling or {}).get("policy") or {}
    if not policy.get("error"):
        return []
    count = one.target_num_replicas
    return [
        _decision(ScalingView(policy["failed_at"], count, count, f"{policy['policy_function']}: {policy['error']}"))
    ]


def _resources(options: Mapping[str, Any]) -> dict[str, float]:
    found = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), "memory": options.get("memory")}
    return {name: float(amount) for name, amount in found.items() if amount}


def _config(one: DeploymentView) -> dict[str, Any]:
    config = _option_names(one.config)
    config["name"] = one.bare_name
    config["max_queued_requests"] = one.max_queued_requests
    config["backpressure_config"] = {
        "status_code": 503,
        "retry_after_s": None,
        **(config.get("backpressure_config") or {}),
    }
    return config


def _option_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a deployment in today's names, without those that it does not have."""
    config = {_RENAMED.get(key, key): value for key, value in options.items() if key not in _UNKNOWN}
    if config.get("max_surge_percent", 0) is None:
        del config["max_surge_percent"]
    # today's clients take objects alone
    if not isinstance(config.get("user_config", {}), dict | None):
        del config["user_config"]
    scaling = config.get("autoscaling_config")
    if isinstance(scaling, Mapping):
        config["autoscaling_config"] = {_AUTOSCALING_RENAMED.get(key, key): value for key, value in scaling.items()}
    actor_options = config.get("ray_actor_options")
    if isinstance(actor_options, Mapping) and "runtime_env" in actor_options:
        env = _environment(actor_options["runtime_env"])
        rest = {key: value for key, value in actor_options.items() if key != "runtime_env"}
        config["ray_actor_options"] = {**({"runtime_env": env} if env else {}), **rest}
    return config


def stored_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an application as it was submitted, in today's names."""
    shown = dict(config)
    if isinstance(shown.get("runtime_env"), Mapping):
        shown["runtime_env"] = _environment(shown["runtime_env"])
    if isinstance(shown.get("deployments"), list):
        shown["deployments"] = [_option_names(override) for override in shown["deployments"]]
    return shown


def _environment(env: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in env.items() if value or key != "env_vars"}
    if shown.get("working_dir"):
        shown["working_dir"] = _place(shown["working_dir"])
    if shown.get("py_modules"):
        shown["py_modules"] = [_place(module) for module in shown["py_modules"]]
    return shown


def _place(uri: str) -> str:
    """A directory is `local:` today: `file:` means an archive there."""
    if not runtime_env.is_local_directory(uri):
        return uri
    return "local://" + runtime_env.file_uri(runtime_env.local_path(uri)).removeprefix("file://")


def _replica_name(app: str, one: DeploymentView, replica_id: str) -> tuple[str, str]:
    """Today's id of a replica, and the name of its actor."""
    suffix = replica_id.rpartition("#")[2]
    return suffix, f"SERVE_REPLICA::{app}#{one.bare_name}#{suffix}"


def _replica(view: InstanceView, app: str, one: DeploymentView, replica: ReplicaView) -> shapes.TodayReplica:
    suffix, name = _replica_name(app, one, replica.replica_id)
    log = f"/serve/{replica_file(one.name, replica.replica_id)}"
    return {
        **_actor(view, replica.actor_id, name, replica.worker_id, log),
        "replica_id": suffix,
        "state": replica.state.value,
        "pid": replica.pid,
        "start_time_s": replica.start_time_s,
    }


def _dead(view: InstanceView, app: str, one: DeploymentView, dead: DeadReplicaView) -> shapes.TodayReplica:
    suffix, name = _replica_name(app, one, dead.replica_id)
    log = f"/serve/{replica_file(one.name, dead.replica_id)}"
    return {
        **_actor(view, dead.actor_id, name, dead.worker_id, log),
        "replica_id": suffix,
        "state": "STOPPED",
        "pid": dead.pid,
        "start_time_s": dead.start_time_s,
    }
