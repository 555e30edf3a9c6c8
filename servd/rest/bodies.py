"""Bodies of the GET endpoints, made from one view of the instance. Pure; key order is the contract's."""

from typing import Any

from servd.documents.control_plane import (
    ApplicationView,
    DeadReplicaView,
    DeploymentView,
    HttpView,
    InstanceView,
    ProxyView,
    ReplicaView,
)
from servd.documents.controller_views import UpgradeView
from servd.ground.clock import utc_offset_s
from servd.ground.states import DeployMode, ProxyLocation, ProxyStatus
from servd.observability.error_groups import KeptError
from servd.observability.logs import replica_file
from servd.rest import shapes

DEFAULT_APP = "default"
CONTROLLER_NAME = "SERVE_CONTROLLER_ACTOR"


def version_body() -> shapes.Version:
    """What the 2.5 command line probes before every call."""
    return {"version": "4", "ray_version": "2.5.1", "ray_commit": "servd"}


def v1_config(view: InstanceView) -> dict[str, Any]:
    """GET V1: the stored config of `default`, or the empty one."""
    app = view.application(DEFAULT_APP) if view.running else None
    if app is None or app.config is None:
        return {"import_path": "", "runtime_env": {}, "deployments": []}
    return app.config


def v1_status(view: InstanceView) -> dict[str, Any]:
    """GET V1 status: deployments by their bare names."""
    if not view.running:
        status = {"status": "NOT_STARTED", "message": "", "deployment_timestamp": 0}
        return {"app_status": status, "deployment_statuses": []}
    app = view.application(DEFAULT_APP)
    if app is None:
        message = f"application {DEFAULT_APP!r} does not exist"
        status = {"status": "NOT_STARTED", "message": message, "deployment_timestamp": 0.0}
        return {"name": DEFAULT_APP, "app_status": status, "deployment_statuses": []}
    return {
        "name": DEFAULT_APP,
        "app_status": {
            "status": app.status,
            "message": app.message,
            "deployment_timestamp": app.last_deployed_time_s,
        },
        "deployment_statuses": [
            {"name": deployment.bare_name, "status": deployment.status, "message": deployment.message}
            for deployment in app.deployments
        ],
    }


def v2_details(view: InstanceView) -> dict[str, Any]:
    """GET V2: exactly the keys that 2.5 clients accept."""
    if not view.running:
        return {"deploy_mode": str(DeployMode.UNSET), "controller_info": {}, "applications": {}}
    return {
        "controller_info": controller_info(view),
        "proxy_location": view.http.location,
        "http_options": _http_options(view.http),
        "http_proxies": _http_proxies(view),
        "deploy_mode": view.mode,
        "applications": {app.name: _application(view, app) for app in view.applications},
    }


def own_status(view: InstanceView) -> shapes.Status:
    """GET /api/servd/v1/status."""
    return {
        "revision": view.revision,
        "version": view.version,
        "running": view.running,
        "notice": view.notice,
        "log_dir": view.log_dir,
        "utc_offset_s": utc_offset_s(),
        "page_url": view.page_url,
        "edition": view.edition,
        "upgrade": None if view.upgrade is None else _upgrade(view.upgrade),
        "deploy_mode": view.mode,
        "target_capacity": view.target_capacity,
        "controller_info": controller_info(view),
        "http": {
            "host": view.http.host,
            "port": view.http.port,
            "root_path": view.http.root_path,
            "location": ProxyLocation(view.http.location),
            "listening": view.http.listening,
            "tls": view.http.is_tls,
            "ssl_certfile": view.http.ssl_certfile,
            "ssl_keyfile": view.http.ssl_keyfile,
            "ssl_ca_certs": view.http.ssl_ca_certs,
            "request_timeout_s": view.http.request_timeout_s or None,
            "grpc_port": view.http.grpc.get("port", 0),
        },
        "proxies": [_own_proxy(view, proxy) for proxy in view.proxies],
        "applications": {app.name: _own_application(view, app) for app in view.applications},
    }


def _upgrade(upgrade: UpgradeView) -> shapes.Upgrade:
    return {
        "edition": upgrade.edition,
        "before": upgrade.before,
        "stage": upgrade.stage,
        "message": upgrade.message,
        "proxies": upgrade.proxies,
        "fork_servers": upgrade.fork_servers,
        "replicas": upgrade.replicas,
    }


def controller_info(view: InstanceView) -> shapes.Controller:
    """Identity of the controller."""
    return {
        **_identity(
            view,
            view.controller_actor_id,
            CONTROLLER_NAME,
            view.controller_worker_id,
            f"/serve/controller_{view.controller_pid}.log",
        ),
        "pid": view.controller_pid,
    }


def _identity(
    view: InstanceView, actor_id: str, actor_name: str, worker_id: str, log_file_path: str
) -> shapes.Identity:
    return {
        "node_id": view.node_id,
        "node_ip": view.node_ip,
        "actor_id": actor_id or None,
        "actor_name": actor_name,
        "worker_id": worker_id or None,
        "log_file_path": log_file_path,
    }


def _http_options(http: HttpView) -> dict[str, Any]:
    options: dict[str, Any] = {"host": http.host, "port": http.port}
    if http.root_path:
        options["root_path"] = http.root_path
    return options


def _http_proxies(view: InstanceView) -> dict[str, Any]:
    """One entry for this host: healthy if any proxy is."""
    if view.http.location == "NoServer":
        return {}
    by_merit = (ProxyStatus.HEALTHY, ProxyStatus.STARTING, ProxyStatus.UNHEALTHY)
    best = min(view.proxies, key=lambda proxy: by_merit.index(proxy.status), default=None)
    actor_id, worker_id = (best.actor_id, best.worker_id) if best else ("", "")
    return {
        view.node_id: {
            **_proxy_identity(view, actor_id, worker_id),
            "status": best.status if best else ProxyStatus.STARTING,
        }
    }


def _proxy_identity(view: InstanceView, actor_id: str, worker_id: str) -> shapes.Identity:
    name = f"{CONTROLLER_NAME}:SERVE_PROXY_ACTOR-{view.node_id}"
    return _identity(view, actor_id, name, worker_id, f"/serve/http_proxy_{view.node_ip}.log")


def _application(view: InstanceView, app: ApplicationView) -> dict[str, Any]:
    deployments = {deployment.name: _deployment(view, deployment) for deployment in app.deployments}
    return {**_application_head(app), "deployments": deployments}


def _application_head(app: ApplicationView) -> shapes.ApplicationHead:
    return {
        "name": app.name,
        "route_prefix": app.route_prefix,
        "docs_path": app.docs_path,
        "status": app.status,
        "message": app.message,
        "last_deployed_time_s": app.last_deployed_time_s,
        "deployed_app_config": app.config,
    }


def _deployment(view: InstanceView, deployment: DeploymentView) -> dict[str, Any]:
    return {
        "name": deployment.name,
        "status": deployment.status,
        "message": deployment.message,
        "deployment_config": deployment.config,
        "replicas": [_replica(view, deployment, replica) for replica in deployment.replicas],
    }


def _replica(view: InstanceView, deployment: DeploymentView, replica: ReplicaView) -> shapes.Replica:
    name = f"SERVE_REPLICA::{replica.replica_id}"
    path = f"/serve/{replica_file(deployment.name, replica.replica_id)}"
    return {
        **_identity(view, replica.actor_id, name, replica.worker_id, path),
        "replica_id": replica.replica_id,
        "state": replica.state,
        "pid": replica.pid,
        "start_time_s": replica.start_time_s,
    }


def _own_proxy(view: InstanceView, proxy: ProxyView) -> shapes.Proxy:
    return {
        **_proxy_identity(view, proxy.actor_id, proxy.worker_id),
        "proxy_id": proxy.proxy_id,
        "slot": proxy.slot,
        "pid": proxy.pid,
        "host": view.http.host,
        "port": view.http.port,
        "status": proxy.status,
        "connections": proxy.connections,
    }


def _own_application(view: InstanceView, app: ApplicationView) -> shapes.Application:
    deployments = {deployment.name: _own_deployment(view, deployment) for deployment in app.deployments}
    return {
        **_application_head(app),
        "standing": app.standing,
        "standing_message": app.standing_message,
        "deployments": deployments,
    }


def _own_deployment(view: InstanceView, deployment: DeploymentView) -> shapes.Deployment:
    return {
        "name": deployment.bare_name,
        "status": deployment.status,
        "standing": deployment.standing,
        "status_trigger": deployment.status_trigger,
        "message": deployment.message,
        "deployment_config": deployment.config,
        "target_num_replicas": deployment.target_num_replicas,
        "replicas": [
            {
                **_replica(view, deployment, replica),
                "ongoing": replica.ongoing,
                "message": replica.message,
                "start_method": replica.start_method,
            }
            for replica in deployment.replicas
        ],
        "recent_dead_replicas": [_dead(dead) for dead in deployment.recent_dead],
        "autoscaling": deployment.autoscaling,
    }


def _dead(dead: DeadReplicaView) -> shapes.DeadReplica:
    code = dead.exit_code
    return {
        "replica_id": dead.replica_id,
        "pid": dead.pid,
        "exit_code": code if code is None or code >= 0 else None,
        "signal": -code if code is not None and code < 0 else None,
        "age_s": dead.age_s,
        "reason": dead.reason,
        "open_requests": dead.ongoing,
        "log_lines": list(dead.log_lines),
        "stack": dead.stack,
    }


def error_entry(kept: KeptError) -> shapes.ErrorEntry:
    """One group of errors, without its traceback."""
    group = kept.group
    return {
        "id": group.id,
        "application": kept.app,
        "deployment": kept.deployment,
        "type": group.type,
        "place": group.place,
        "message": group.text,
        "method": group.method,
        "route": group.route,
        "count": group.count,
        "first_at": group.first_at,
        "last_at": group.last_at,
        "request_ids": [request_id for _, request_id in reversed(group.requests)],
        "trace_ids": dict(group.trace_ids),
    }
