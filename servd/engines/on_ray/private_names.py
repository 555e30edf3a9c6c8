"""What servd's package leans on of Ray's that is no part of its public API; Ray 2.60 has it. Needs nothing but Ray."""

import importlib
from typing import Any


def _private(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        version = getattr(importlib.import_module("ray"), "__version__", "of this cluster")
        raise NotImplementedError(
            f"Ray {version} has no {module}.{name}, which servd's package needs to run what imports servd; Ray 2.60 has it: use "
            "that on the cluster, or write the application with `from ray import serve`"
        ) from error


ASGIAppReplicaWrapper: Any = _private("ray.serve._private.http_util", "ASGIAppReplicaWrapper")
"""A class whose instance hands its requests to an ASGI application; Ray tells such a deployment by it."""
get_serve_request_context: Any = _private("ray.serve.context", "_get_serve_request_context")
"""Gives `request_id` and `route` of the request that the caller is busy with."""
