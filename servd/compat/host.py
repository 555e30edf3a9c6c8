"""`ray.nodes` and its like: the host as a cluster of one node, for programs that print it or count on it."""

import importlib
import os
import socket
from pathlib import Path
from typing import Any

from servd.compat.ray_session import NODE_IP


def cluster_resources() -> dict[str, float]:
    """What the host has: CPUs, bytes of memory, GPUs if there are any."""
    devices = len([*Path("/dev").glob("nvidia[0-9]*")])
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    found = {"CPU": float(os.cpu_count() or 1), "memory": memory, f"node:{NODE_IP}": 1.0}
    return {**found, "GPU": float(devices)} if devices else found


def available_resources() -> dict[str, float]:
    """That, less what the replicas that there are asked for; without what nothing is left of."""
    free = cluster_resources()
    connection = importlib.import_module("servd.calls.connection").find()
    details = {"applications": {}} if connection is None else connection.admin.details(today=True)
    for app in details["applications"].values():
        for deployment in app["deployments"].values():
            for name, amount in deployment["required_resources"].items():
                if name in free:
                    free[name] -= amount * len(deployment["replicas"])
    return {name: amount for name, amount in free.items() if amount > 0}


def nodes() -> list[dict[str, Any]]:
    """The one node that there is."""
    context = importlib.import_module("servd.compat.runtime_context").RuntimeContext()
    node = {
        "NodeID": context.get_node_id(),
        "Alive": True,
        "alive": True,
        "NodeManagerAddress": NODE_IP,
        "NodeManagerHostname": socket.gethostname(),
        "NodeName": NODE_IP,
        "Resources": cluster_resources(),
        "Labels": {},
    }
    return [node]
