"""What today's Ray Serve has no more, with what to write instead. Facts of release 2.60, found by running it."""

from collections.abc import Iterator, Mapping
from typing import Any

from servd.documents.router_names import (
    CONSISTENT_HASH,
    DEFAULT_CLASS,
    LEAST_LOADED,
    POWER_OF_TWO,
    PREFIX,
    ROUND_ROBIN,
    rule_name,
)

_GRAPH = "write a deployment that holds handles and awaits them one after the other"
_HANDLE = "annotate with `ray.serve.handle.DeploymentHandle`; one `await` gives the result"
_BY_NAME = "use `serve.get_deployment_handle(NAME, app_name=APP)`"
_STATUS = "use `serve.status()`"
_ADMIN = "ask the admin API: `servd status`, or `serve status` there"

MODULES: Mapping[str, str] = {
    "ray.serve.drivers": f"{_GRAPH}; its ingress reads the request itself",
    "ray.serve.deployment_graph": _GRAPH,
    "ray.serve.http_adapters": "read the request in the ingress, as with `await request.json()`",
}

NAMES: Mapping[str, str] = {
    "ray.serve.build": "deploy a config file",
    "ray.serve.BuiltApplication": "deploy a config file",
    "ray.serve.get": "`await` the response, or call its `.result()`",
    "ray.serve.get_deployment": _BY_NAME,
    "ray.serve.list_deployments": _STATUS,
    "ray.serve.api.build": "deploy a config file",
    "ray.serve.api.get_deployment": _BY_NAME,
    "ray.serve.api.list_deployments": _STATUS,
    "ray.serve.dag.InputNode": _GRAPH,
    "ray.serve.dag.RayServeDAGHandle": _GRAPH,
    "ray.dag.InputNode": _GRAPH,
    "ray.dag.input_node.InputNode": _GRAPH,
    "ray.serve.context.get_global_client": _STATUS,
    "ray.serve.context.get_multiplexed_model_id": "use `serve.get_multiplexed_model_id`",
    "ray.serve.context.get_replica_context": "use `serve.get_replica_context`",
    "ray.serve.context.get_trace_context": "use the current span of `opentelemetry.trace`",
    "ray.serve.handle.RayServeHandle": _HANDLE,
    "ray.serve.handle.RayServeSyncHandle": _HANDLE,
    "ray.serve.handle.RayServeDeploymentHandle": _HANDLE,
    "ray.serve.config.DeploymentMode": "use `ray.serve.config.ProxyLocation`",
    "ray.serve.config.LoggingConfig": "use `ray.serve.schema.LoggingConfig`",
    "ray.serve.schema.HTTPProxyDetails": _ADMIN,
    "ray.serve.schema.ServeStatusSchema": _ADMIN,
    "ray.serve.schema.DeploymentStatusOverview": _ADMIN,
    **{
        f"ray.serve.exceptions.{name}": "catch `ray.serve.exceptions.RayServeException`"
        for name in (
            "ConfigError",
            "DeployError",
            "ReplicaDiedError",
            "ServdError",
            "UnknownDeploymentError",
            "UserCodeError",
        )
    },
}

OPTIONS: Mapping[str, str] = {
    "max_concurrent_queries": "write `max_ongoing_requests`",
    "version": "leave it out",
    "route_prefix": "give it to the application: `route_prefix` in the document, or of `serve.run`",
    "is_driver_deployment": "leave it out",
    "init_args": "give the arguments to `.bind(...)`",
    "init_kwargs": "give the arguments to `.bind(...)`",
}
"""Of the decorator and of `.options`."""

PASSED_ON = frozenset({"request_timeout_s", "cancel_on_disconnect", "max_sync_threads", "memory_limit_bytes"})
"""Those of servd's own options that its package obeys there."""

OWN_OPTIONS: Mapping[str, str] = {
    "request_timeout_s": "set `request_timeout_s` of `http_options`, one limit for the whole cluster",
    "cancel_on_disconnect": "shield in the handler what must go on: `asyncio.shield`",
    "max_sync_threads": "hold a `threading.Semaphore` around what may not run at the same time",
    "memory_limit_bytes": "raise in `check_health` when the process has grown too large",
    "start_method": "leave it out: replicas are processes of their own there",
    "preload": "leave it out: each replica constructs its own instance there",
}
"""servd's own options of a deployment."""

CODE_OPTIONS: Mapping[str, str] = {"max_constructor_retry_count": "give it in code: `@serve.deployment(...)`"}
"""Options that only code can give there."""

DEPLOYMENT_ATTRIBUTES: Mapping[str, str] = {
    "deploy": "use `serve.run(DEPLOYMENT.bind(...))`",
    "delete": "use `serve.delete(APP)`",
    "get_handle": _BY_NAME,
    "set_options": "use `.options(...)`, which gives a new one",
    "url": _STATUS,
    "route_prefix": _STATUS,
}

ACTOR_OPTIONS: Mapping[str, str] = {
    "env_vars": 'write `"runtime_env": {"env_vars": {...}}`',
    "object_store_memory": "leave it out",
}
"""Keys of `ray_actor_options` that are refused there in code, and ignored in documents."""

ROUTERS = {
    POWER_OF_TWO: DEFAULT_CLASS,
    ROUND_ROBIN: "ray.serve.experimental.round_robin_router:RoundRobinRouter",
    CONSISTENT_HASH: "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
    PREFIX: "ray.serve.llm.request_router:PrefixCacheAffinityRouter",
    LEAST_LOADED: DEFAULT_CLASS,
}
"""Name -> Ray's class."""
_NO_ROUTER_OPTIONS = {
    "header": "one header for the whole cluster: `RAY_SERVE_SESSION_ID_HEADER_KEY` of its nodes",
    "load_factor": "leave it out: a full replica passes requests on there too",
}

POLICY = (
    "a policy is loaded in Ray's controller, which has of the application its function alone: one that uses or is annotated with "
    "names of servd, of other modules or of packages in its environment is never asked there"
)
POLICY_INSTEAD = "use the standard library and `ray.serve` in it, or install the rest into the image of the head node"
TEXTS = "the text of a handle call lies in servd's pickle there: such calls go to the less busy of two"


def is_by_text(config: Mapping[str, Any]) -> bool:
    """Whether a config names the router that goes by texts."""
    return rule_name(config.get("request_router_class", DEFAULT_CLASS)) == PREFIX


def translated_router(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config there, of a checked one."""
    name = rule_name(config.get("request_router_class", DEFAULT_CLASS)) or POWER_OF_TWO
    kwargs = {
        key: value
        for key, value in (config.get("request_router_kwargs") or {}).items()
        if key not in _NO_ROUTER_OPTIONS
    }
    if name == PREFIX:
        # there it is not bounded else
        kwargs["do_eviction"] = True
    return {"request_router_class": ROUTERS[name], **({"request_router_kwargs": kwargs} if kwargs else {})}


def lost_options(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Where, what of a config is otherwise there, and what to do."""
    if rule_name(config.get("request_router_class", DEFAULT_CLASS)) == LEAST_LOADED:
        what = f"there is no router `{LEAST_LOADED}`: requests go to the less busy of two"
        yield ("request_router_class",), what, "leave it out"
    for key in config.get("request_router_kwargs") or {}:
        if key in _NO_ROUTER_OPTIONS:
            what = f"Ray's ConsistentHashRouter has no option `{key}`"
            yield ("request_router_kwargs", key), what, _NO_ROUTER_OPTIONS[key]
