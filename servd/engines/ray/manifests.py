"""Resources of Kubernetes: a RayService of KubeRay, and one servd a pod. Pure; values as YAML has them."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from servd.exceptions import ConfigError

RAY_VERSION = "2.60.0"
ANY_HOST = "0.0.0.0"
DEFAULT_PORT = 8000
LONGEST_RAY_NAME, LONGEST_NAME = 47, 63
CPUS_PER_WORKER, GIB_PER_CPU = 4, 2
STATE, DOCUMENT = "/var/lib/servd", "/etc/servd/serve.yaml"
LEAVE_S = 5
"""From the order to stop until no proxy of the cluster sends requests any more."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")


def check_resource_name(name: str, longest: int) -> None:
    """Refuse what Kubernetes would refuse as a name.

    Raises:
        ConfigError: says which letters it may have.
    """
    if not _NAME.match(name) or len(name) > longest:
        raise ConfigError(
            f"{name!r} is no name of a resource: lower-case letters, digits and '-', at most {longest}, beginning and ending "
            "with a letter or digit"
        )


def cpus_needed(document: Mapping[str, Any], code: Mapping[tuple[str, str], Mapping[str, Any]]) -> float:
    """CPUs that all replicas of a document of today's reserve together, at their highest count.

    Args:
        code: (application, deployment) -> options that the code gives.
    """
    total = 0.0
    for app in document["applications"]:
        for entry in app["deployments"]:
            options = code.get((app["name"], entry["name"]), {})
            # an override of these options replaces the code's as a whole
            actor = entry.get("ray_actor_options") or options.get("ray_actor_options") or {}
            cpus = 1.0 if actor.get("num_cpus") is None else actor["num_cpus"]
            total += _highest_count(entry, options) * cpus
    return total


def _highest_count(entry: Mapping[str, Any], code: Mapping[str, Any]) -> int:
    for one in (entry, code):
        if isinstance(one.get("num_replicas"), int):
            return int(one["num_replicas"])
        if one.get("autoscaling_config"):
            return int(one["autoscaling_config"].get("max_replicas", 1))
    return 1


def ray_service(name: str, image: str, document: str, *, port: int, cpus: float) -> dict[str, Any]:
    """A RayService (`ray.io/v1`).

    Args:
        document: text of the document of today's Ray Serve. port: of its data port. cpus: that its replicas reserve.

    Raises:
        ConfigError: `name` is none.
    """
    check_resource_name(name, LONGEST_RAY_NAME)
    workers = max(1, math.ceil(cpus / CPUS_PER_WORKER))
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": port}
    head = _container("ray-head", image, 2)
    head["ports"] = [{"containerPort": number, "name": title} for title, number in ports.items()]
    worker = _container("ray-worker", image, CPUS_PER_WORKER)
    worker["ports"] = [{"containerPort": port, "name": "serve"}]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {
            "serveConfigV2": document,
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "headGroupSpec": {
                    # values are strings there; replicas run on the workers
                    "rayStartParams": {"num-cpus": "0"},
                    "template": {"spec": {"containers": [head]}},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": workers,
                        "minReplicas": workers,
                        "maxReplicas": workers,
                        "rayStartParams": {},
                        "template": {"spec": {"containers": [worker]}},
                    }
                ],
            },
        },
    }


def _container(name: str, image: str, cpus: int) -> dict[str, Any]:
    amount = {"cpu": str(cpus), "memory": f"{cpus * GIB_PER_CPU}Gi"}
    return {"name": name, "image": image, "resources": {"limits": amount, "requests": dict(amount)}}


def plain_resources(
    name: str, image: str, document: str, *, port: int, replicas: int = 2, drain_s: float = 20.0
) -> list[dict[str, Any]]:
    """ConfigMap, Deployment and Service for one servd a pod.

    Args:
        document: text of servd's own document. port: of the data plane. replicas: pods.
        drain_s: longest that one of its replicas may take to finish its requests.

    Raises:
        ConfigError: `name` is none.
    """
    check_resource_name(name, LONGEST_NAME)
    labels = {"app.kubernetes.io/name": name}
    digest = hashlib.sha256(document.encode()).hexdigest()
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels},
        "data": {"serve.yaml": document},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            # as a redeploy of servd's own: new ones serve before old ones go
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                # another document is another template: the cluster then rolls
                "metadata": {"labels": labels, "annotations": {"servd/document-sha256": digest}},
                "spec": _pod(name, image, port, drain_s),
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    return [config_map, deployment, service]


def _pod(name: str, image: str, port: int, drain_s: float) -> dict[str, Any]:
    state = f"{STATE}/state"
    # probes begin when this has ended; if it fails the pod starts anew, and its events have the output
    deploy = (
        f"until servd config --state-dir {state} >/dev/null 2>&1; do sleep 0.2; done; "
        f"exec servd deploy {DOCUMENT} --wait --state-dir {state}"
    )
    probe = {"httpGet": {"path": "/-/healthz", "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5}
    container = {
        "name": "servd",
        "image": image,
        "command": ["servd", "start", "--no-http", "--http-host", ANY_HOST, "--http-port", str(port)],
        "args": ["--dashboard-port", "0", "--state-dir", state],
        "ports": [{"name": "http", "containerPort": port}],
        "lifecycle": {
            "postStart": {"exec": {"command": ["sh", "-c", deploy]}},
            # SIGTERM follows: servd then finishes the requests that it has
            "preStop": {"exec": {"command": ["sleep", str(LEAVE_S)]}},
        },
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "document", "mountPath": DOCUMENT.rpartition("/")[0], "readOnly": True},
            {"name": "state", "mountPath": STATE},
        ],
    }
    return {
        "terminationGracePeriodSeconds": LEAVE_S + math.ceil(drain_s) + 10,
        "containers": [container],
        "volumes": [
            {"name": "document", "configMap": {"name": name}},
            {"name": "state", "emptyDir": {}},
        ],
    }
