"""What each key of a config file means: model -> key -> text. A key without a text, or a text without a key, fails a test."""

TITLES: dict[str, tuple[str, str]] = {
    "ServeDeploySchema": (
        "Top level",
        "What is not listed under `applications` is removed when the file is deployed.",
    ),
    "ServeApplicationSchema": (
        "An application",
        "An item of `applications`; or the whole file, which then has `host` and `port` and no `name`.",
    ),
    "DeploymentSchema": (
        "A deployment",
        "An item of `deployments` of an application: only those, and only the keys, that the file says otherwise than the code. The same keys are the "
        "options of `@deployment`, which has further ones: [Python](../api.md#deployments).",
    ),
    "AutoscalingConfig": ("`autoscaling_config`", "How a decision is made: [Autoscaling](../howto/autoscaling.md)."),
    "RayActorOptionsSchema": ("`ray_actor_options`", "Resources and environment of the replicas of one deployment."),
    "HTTPOptionsSchema": ("`http_options`", "Of the data port. An option of `servd start` counts before them."),
    "gRPCOptionsSchema": ("`grpc_options`", "See [gRPC](../grpc.md)."),
    "LoggingConfig": (
        "`logging_config`",
        "At the top of the file: of proxies and controller, and of every application without its own. Of an application: of its deployments without one.",
    ),
    "BackpressureConfig": ("`backpressure_config`", "How a request is refused that finds the waiting line full."),
    "AutoscalingPolicy": (
        "`policy`",
        "Of `autoscaling_config`, or `autoscaling_policy` of an application: user code that says how many replicas there shall be.",
    ),
    "RequestRouterConfig": ("`request_router_config`", "Which replica a request goes to."),
    "HTTPOptions": ("Only in Python: `HTTPOptions`", "What `servd.start(http_options=...)` takes."),
}

_LOGGING = "see [`logging_config`](#logging_config)"
_DEPLOYMENT = {
    "name": "bare name, as in the code",
    "num_replicas": "`auto` stands for 1 to 100 replicas that get 2 ongoing requests each. At most 64 replicas start at a time",
    "route_prefix": "path under which it answers HTTP; null: not at all. By default `/<name>`, of an ingress `/`",
    "user_config": "given to `reconfigure(user_config)`; changed without a restart",
    "autoscaling_config": "see [`autoscaling_config`](#autoscaling_config); excludes `num_replicas`",
    "ray_actor_options": "see [`ray_actor_options`](#ray_actor_options)",
    "max_concurrent_queries": "requests that one replica runs at a time, over all callers. With `@batch` methods the default lets the largest batches form",
    "graceful_shutdown_wait_loop_s": "for so long, at most, callers may take to learn that a replica stops, before it begins to",
    "graceful_shutdown_timeout_s": "for so long a replica that stops may finish its requests",
    "health_check_period_s": "between two calls of `check_health`",
    "health_check_timeout_s": "a health check that takes longer has failed; three in a row replace the replica",
    "is_driver_deployment": "exactly one replica",
    "max_queued_requests": "requests that may wait at one caller; -1: no bound. Beyond it 503, or `BackPressureError` of a handle",
    "request_timeout_s": "limit of a request over HTTP or gRPC, of an ingress: 408",
    "cancel_on_disconnect": "`false`: a handler finishes though its client is gone",
    "max_sync_threads": "threads for handlers that are no `async def`, in one replica",
    "memory_limit_bytes": "a replica above it is drained and replaced",
    "start_method": "`spawn`: each replica is a fresh interpreter. See [Fork or spawn](../api.md#fork-or-spawn)",
    "preload": "the instance is constructed once and the replicas are forked from there: [Models and memory](../howto/memory.md)",
    "logging_config": _LOGGING,
    "rolling_update_percentage": "share of the replicas that an update takes at a time, at least one",
    "max_surge_percent": "replicas beyond the wanted number that may live during an update, in percent of it, rounded up. Without it as many as "
    "`rolling_update_percentage` gives; 0: old ones stop first",
    "max_constructor_retry_count": "failed starts in a row after which the deployment is UNHEALTHY, if three times `num_replicas` are not fewer",
    "backpressure_config": "see [`backpressure_config`](#backpressure_config)",
    "request_router_config": "see [`request_router_config`](#request_router_config)",
}

TEXTS: dict[str, dict[str, str]] = {
    "ServeDeploySchema": {
        "proxy_location": "`NoServer` (or `Disabled`): no data port. The others mean the same on one host",
        "http_options": "see [`http_options`](#http_options)",
        "applications": "the [applications](#an-application)",
        "logging_config": _LOGGING,
        "target_capacity": "percent of every replica count that is wanted, bounds of autoscaling included; 0: no replica. Without it all of them",
        "grpc_options": "see [`grpc_options`](#grpc_options)",
    },
    "ServeApplicationSchema": {
        "name": "unique; at most 256 characters without control characters",
        "route_prefix": "path under which its ingress answers HTTP; null: not at all",
        "import_path": "`module:attribute` of what `bind` gave, or of a function that gives it",
        "runtime_env": "see [`runtime_env`](#runtime_env)",
        "host": "of the data port; only in a file of one application",
        "port": "of the data port; only in a file of one application",
        "deployments": "what the file says of [deployments](#a-deployment)",
        "args": "given to the function that `import_path` names",
        "logging_config": _LOGGING,
        "external_scaler_enabled": "no deployment of the application may autoscale; `servd scale` is always allowed",
        "autoscaling_policy": "a [`policy`](#policy) of all its deployments that scale, in place of theirs",
    },
    "DeploymentSchema": _DEPLOYMENT,
    "AutoscalingConfig": {
        "min_replicas": "never fewer; 0: none while nobody asks",
        "initial_replicas": "of a deployment that has no replica yet; else `min_replicas`",
        "max_replicas": "never more",
        "target_num_ongoing_requests_per_replica": "wanted load per replica: requests that run there, and its part of those that wait",
        "metrics_interval_s": "a replica reports a change of its load after so long, or after 0.25 s",
        "look_back_period_s": "window over which the load counts",
        "smoothing_factor": "share of the way to the wanted count that one step takes, in both directions",
        "downscale_delay_s": "for so long fewer replicas must be wanted",
        "upscale_delay_s": "for so long more replicas must be wanted",
        "upscaling_factor": "as `smoothing_factor`, upwards only",
        "downscaling_factor": "as `smoothing_factor`, downwards only",
        "upscale_smoothing_factor": "older name of `upscaling_factor`",
        "downscale_smoothing_factor": "older name of `downscaling_factor`",
        "downscale_to_zero_delay_s": "the delay of the last replica, which is then alone before it goes; else `downscale_delay_s`",
        "aggregation_function": "what counts of the load over the window; `max` and `min` of what all replicas have together",
        "policy": "who decides instead of the load: see [`policy`](#policy)",
    },
    "RayActorOptionsSchema": {
        "runtime_env": "laid over that of the application",
        "num_cpus": "reserved per replica, of `servd start --num-cpus`; also the number of threads that numerical libraries start",
        "num_gpus": "reserved per replica; it sees its own devices alone, by `CUDA_VISIBLE_DEVICES`. Parts of one (0.5) share it",
        "memory": "kept and shown; `memory_limit_bytes` bounds a replica",
        "object_store_memory": "kept and shown",
        "resources": "kept and shown",
        "accelerator_type": "kept and shown",
    },
    "HTTPOptionsSchema": {
        "host": "where applications are served; `0.0.0.0`: on every address of the host",
        "port": "0: any that is free",
        "root_path": "prefix that a proxy in front leaves in the path; removed before routes are matched",
        "keep_alive_timeout_s": "how long a connection may be without a request; null or not given: 75, or what `SERVD_HTTP_IDLE_TIMEOUT_S` says",
        "request_timeout_s": "limit of every request: 408",
    },
    "gRPCOptionsSchema": {
        "port": "at the host of the data port",
        "grpc_servicer_functions": "import paths of generated `add_...Servicer_to_server`; without any no port is opened",
        "request_timeout_s": "limit of every call",
        "enable_reflection": "tools may ask for services and message types",
    },
    "LoggingConfig": {
        "encoding": "how lines are written",
        "log_level": "a level of `logging`, by name or number; access lines are `INFO`",
        "enable_access_log": "a line for each request",
        "additional_log_standard_attrs": "attributes of `logging.LogRecord` that each line has too",
    },
    "AutoscalingPolicy": {
        "policy_function": "import path of a function or class: see [Policies of your own](../api.md#policies-of-your-own)",
        "policy_kwargs": "arguments of the class",
    },
    "RequestRouterConfig": {
        "request_router_class": "a built-in (`power_of_two`, `round_robin`, `least_loaded`, `consistent_hash`, `prefix`), or the import path of Ray Serve's "
        "class that does the same",
        "request_router_kwargs": "its options: see [Request routers](../api.md#request-routers)",
    },
    "BackpressureConfig": {
        "status_code": "status of the refusal over HTTP",
        "retry_after_s": "value of `Retry-After`, which a 503 has with 1 where it is not given",
    },
    "HTTPOptions": {
        "host": "None: no data port",
        "port": "0: any that is free",
        "middlewares": "refused: wrap the application's own ASGI app",
        "location": "where proxies run; `NoServer`: no data port",
        "num_cpus": "no effect",
        "root_url": "what `Client.root_url` says, where a proxy in front has another address",
        "keep_alive_timeout_s": "as in `http_options`",
        "root_path": "as in `http_options`",
        "request_timeout_s": "as in `http_options`",
        "fixed_number_replicas": "needed with location `FixedNumber`, which means the same on one host",
        "fixed_number_selection_seed": "no effect",
    },
}

ENVIRONMENT = {
    "working_dir": "a zip (`https:`, `file:`, or `http:` on this host) or a local directory, which is copied when it is accepted; first on the import path, and the current directory",
    "py_modules": "a list of the same, on the import path before it; a directory with an `__init__.py` is imported under its name",
    "env_vars": "set before the interpreter starts",
    "pip": "requirements, the path of a requirements file, or `{packages, pip_check, pip_version}`: a virtual environment for each distinct list, made once",
    "uv": "the same as `pip`, which installs it: a list, a path, or `{packages, uv_check}`; not beside `pip`",
    "excludes": "patterns that are not copied from local directories",
    "config": "`setup_timeout_seconds` (600), `eager_install`",
}
