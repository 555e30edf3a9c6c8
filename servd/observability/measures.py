"""What every process counts under the names of the contract, as families of samples that can be sent and added up.

Source: runtime.md section 14.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from servd.observability.access_log import Key
from servd.observability.journal import LATENCY_BOUNDS_MS, Series
from servd.wire.messages import MetricFamily

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

CONTRACT: dict[str, tuple[str, str]] = {
    "serve_num_http_requests": (COUNTER, "HTTP requests answered."),
    "serve_num_http_error_requests": (COUNTER, "HTTP requests answered with another status than 200."),
    "serve_num_deployment_http_error_requests": (
        COUNTER,
        "HTTP requests to a deployment answered with another status than 200.",
    ),
    "serve_num_grpc_requests": (COUNTER, "Calls of gRPC answered."),
    "serve_num_grpc_error_requests": (COUNTER, "Calls of gRPC that ended with another status than OK."),
    "serve_num_deployment_grpc_error_requests": (
        COUNTER,
        "Calls of gRPC to a deployment that ended with another status than OK.",
    ),
    "serve_grpc_request_latency_ms": (HISTOGRAM, "Time from a call's metadata to its status."),
    "serve_http_request_latency_ms": (HISTOGRAM, "Time from the end of a request's head to the end of its answer."),
    "serve_num_router_requests": (COUNTER, "Requests that were routed to a deployment."),
    "serve_deployment_queued_queries": (GAUGE, "Requests that wait for a replica of the deployment."),
    "serve_handle_request_counter": (COUNTER, "Requests sent to a deployment, by handles and by the proxies."),
    "serve_deployment_request_counter": (COUNTER, "Requests that the replica served."),
    "serve_deployment_error_counter": (COUNTER, "Requests that ended with an exception in the replica."),
    "serve_deployment_replica_starts": (COUNTER, "Starts of the replica."),
    "serve_deployment_processing_latency_ms": (HISTOGRAM, "Time that requests spent in the replica's handler."),
    "serve_replica_processing_queries": (GAUGE, "Requests that run in the replica."),
    "serve_deployment_replica_healthy": (GAUGE, "1 while the replica's health checks pass."),
    "serve_multiplexed_model_load_latency_s": (GAUGE, "How long the last load of a model took."),
    "serve_multiplexed_model_unload_latency_s": (GAUGE, "How long the last unload of a model took."),
    "serve_num_multiplexed_models": (GAUGE, "Models that the replica holds."),
    "serve_multiplexed_models_load_counter": (COUNTER, "Loads of models."),
    "serve_multiplexed_models_unload_counter": (COUNTER, "Unloads of models."),
    "serve_application_status": (
        GAUGE,
        "Status of the application: 1 DEPLOY_FAILED, 3 NOT_STARTED, 4 DELETING, 5 DEPLOYING, 6 RUNNING.",
    ),
    "serve_deployment_status": (
        GAUGE,
        "Status of the deployment: 2 UNHEALTHY, 3 UPDATING, 4 more replicas are on their way, 5 fewer, 6 HEALTHY.",
    ),
    "serve_proxy_status": (GAUGE, "Status of the proxy: 1 STARTING, 2 HEALTHY, 3 UNHEALTHY, 4 DRAINING."),
    "serve_replica_utilization_percent": (GAUGE, "Requests that run in the replica, in hundredths of what it may run."),
    "serve_replica_startup_latency_ms": (HISTOGRAM, "Time from the order to start the replica until it was ready."),
    "serve_health_check_latency_ms": (HISTOGRAM, "How long the replica's health checks took."),
    "serve_health_check_failures": (COUNTER, "Health checks of the replica that failed."),
    "serve_autoscaling_target_replicas": (GAUGE, "Replicas that the autoscaled deployment shall have now."),
    "serve_autoscaling_desired_replicas": (
        GAUGE,
        "Replicas that the load of the deployment asks for, before bounds and delays.",
    ),
    "serve_autoscaling_total_requests": (
        GAUGE,
        "Requests of the deployment, running and waiting, as the autoscaler counts.",
    ),
    "serve_batches_processed": (COUNTER, "Batches that were run."),
    "serve_actual_batch_size": (HISTOGRAM, "Items of the batches that were run."),
    "serve_batch_wait_time_ms": (HISTOGRAM, "How long the oldest item of a batch waited until it was run."),
    "serve_batch_execution_time_ms": (HISTOGRAM, "How long batches took to run."),
    "serve_batch_queue_length": (GAUGE, "Items that wait for a batch."),
    "serve_num_ongoing_http_requests": (GAUGE, "HTTP requests that the proxies have not answered yet."),
    "serve_multiplexed_model_load_latency_ms": (HISTOGRAM, "How long loads of models took."),
    "serve_multiplexed_model_unload_latency_ms": (HISTOGRAM, "How long unloads of models took."),
    "serve_multiplexed_get_model_requests_counter": (COUNTER, "Times that a model was asked for."),
    "serve_autoscaling_target_ongoing_requests": (GAUGE, "Requests that each replica of the deployment shall have."),
    "serve_controller_num_control_loops": (GAUGE, "Turns of the controller since it started."),
    "serve_controller_control_loop_duration_s": (GAUGE, "How long its last hundred turns took, on average."),
    "serve_deployment_queue_age_seconds": (GAUGE, "How long the oldest of the waiting requests has waited."),
    "serve_event_loop_lag_seconds": (GAUGE, "Longest delay of a process's event loop within the last 10 to 20 s."),
    "serve_proxy_connections": (GAUGE, "Client connections that are open."),
    "serve_proxy_accept_pauses_total": (COUNTER, "Times that a proxy let new clients wait, for want of descriptors."),
    "serve_deployment_wanted_replicas": (GAUGE, "Replicas that the deployment shall have now."),
    "serve_deployment_running_replicas": (GAUGE, "Replicas of the deployment that take requests."),
    "serve_deployment_replica_failures_total": (
        COUNTER,
        "Replicas of the deployment that died or had to be ended while they served.",
    ),
    "serve_replica_memory_bytes": (GAUGE, "Memory of the replica's process that is resident, shared parts included."),
    "serve_replica_cpu_seconds_total": (COUNTER, "CPU time that the replica's process has used."),
    "serve_replica_open_descriptors": (GAUGE, "Descriptors that the replica's process has open."),
    "serve_replica_threads": (GAUGE, "Threads of the replica's process."),
}
"""Name -> kind and help. Those from `serve_application_status` on are of later releases, and from
`serve_deployment_queue_age_seconds` on servd's own."""

MAXIMA = frozenset(("serve_deployment_queue_age_seconds", "serve_event_loop_lag_seconds"))
"""Gauges of which the greatest counts where several processes give one; others are added."""

Pairs = tuple[tuple[str, str], ...]
"""Label names and values of a sample, without empty values."""

PATTERN = "__route_pattern"
"""Label, the last one, of what a route of an ASGI application has answered: its pattern, the application's prefix before it.
Who words the samples takes it or leaves it out: nobody else may use a name of this form."""

_PEAK_S = 10.0


def labelled(**labels: str) -> Pairs:
    """The labels of a sample."""
    return tuple((name, value) for name, value in labels.items() if value)


def family(name: str, samples: Iterable[tuple[Pairs, Any]]) -> MetricFamily:
    """A family of the contract."""
    kind, text = CONTRACT[name]
    bounds = LATENCY_BOUNDS_MS if kind == HISTOGRAM else ()
    return MetricFamily(name, kind, text, tuple(samples), bounds)


class Sums:
    """Adds up samples whose labels turn out equal."""

    def __init__(self) -> None:
        self._found: dict[str, dict[Pairs, Any]] = {}

    def count(self, name: str, number: int, **labels: str) -> None:
        """Add to a counter; none appears at 0."""
        if number:
            samples = self._found.setdefault(name, {})
            pairs = labelled(**labels)
            samples[pairs] = samples.get(pairs, 0) + number

    def measure(self, name: str, series: Series, **labels: str) -> None:
        """Add a series to a histogram."""
        samples = self._found.setdefault(name, {})
        pairs = labelled(**labels)
        found = series.buckets()
        total_ms, buckets = samples.get(pairs, (0.0, (0,) * len(found)))
        added = tuple(a + b for a, b in zip(buckets, found, strict=True))
        samples[pairs] = (total_ms + series.total_ms(), added)

    def families(self) -> list[MetricFamily]:
        """What was added up."""
        return [family(name, samples.items()) for name, samples in self._found.items()]


def http_families(found: Mapping[Key, Series]) -> list[MetricFamily]:
    """What a proxy's journal says of HTTP."""
    sums = Sums()
    for ((route, app, deployment, pattern), method, status), series in found.items():
        if isinstance(status, str):
            continue
        number, code = series.count, str(status)
        last = {PATTERN: pattern}
        sums.count(
            "serve_num_http_requests", number, route=route, method=method, application=app, status_code=code, **last
        )
        sums.measure("serve_http_request_latency_ms", series, route=route, application=app, status_code=code, **last)
        if status != 200:
            tags = {"route": route, "error_code": code, "method": method, "application": app}
            sums.count("serve_num_http_error_requests", number, **tags, **last)
        if not deployment:
            continue
        if status != 200:
            sums.count(
                "serve_num_deployment_http_error_requests",
                number,
                deployment=deployment,
                error_code=code,
                method=method,
                route=route,
                application=app,
                **last,
            )
        _count_routed(sums, number, deployment, route, app, pattern)
    return sums.families()


def grpc_families(found: Mapping[Key, Series]) -> list[MetricFamily]:
    """What a proxy's journal says of gRPC, whose statuses are names; the route of a call is its method."""
    sums = Sums()
    for ((method, app, deployment, _), _, code), series in found.items():
        if not isinstance(code, str):
            continue
        number = series.count
        tags = {"route": method, "method": method, "application": app}
        sums.count("serve_num_grpc_requests", number, **tags, status_code=code)
        sums.measure("serve_grpc_request_latency_ms", series, **tags, status_code=code)
        if code != "OK":
            sums.count("serve_num_grpc_error_requests", number, **tags, error_code=code)
        if not deployment:
            continue
        if code != "OK":
            name = "serve_num_deployment_grpc_error_requests"
            sums.count(name, number, **tags, deployment=deployment, error_code=code)
        _count_routed(sums, number, deployment, method, app)
    return sums.families()


def replica_families(found: Mapping[Key, Series], **tags: str) -> list[MetricFamily]:
    """What a replica's journal says. tags: the replica's."""
    sums = Sums()
    for ((route, _, _, pattern), _, status), series in found.items():
        labels = {"route": route, **tags, PATTERN: pattern}
        name = "serve_deployment_error_counter" if status == "ERROR" else "serve_deployment_request_counter"
        sums.count(name, series.count, **labels)
        sums.measure("serve_deployment_processing_latency_ms", series, **labels)
    return sums.families()


def handle_families(sent: Mapping[tuple[str, str, str], int], apps: Mapping[str, str]) -> list[MetricFamily]:
    """Calls that handles of this process sent.

    Args:
        sent: (deployment, route, pattern of the route that answers) -> number.
        apps: deployment -> application.
    """
    sums = Sums()
    for (deployment, route, pattern), number in sent.items():
        _count_routed(sums, number, deployment, route, apps.get(deployment, ""), pattern)
    return sums.families()


def _count_routed(sums: Sums, number: int, deployment: str, route: str, app: str, pattern: str = "") -> None:
    tags = {"deployment": deployment, "route": route, "application": app, PATTERN: pattern}
    sums.count("serve_num_router_requests", number, **tags)
    sums.count("serve_handle_request_counter", number, handle=deployment, **tags)


def queue_families(waiting: Iterable[tuple[str, str, int, float]]) -> list[MetricFamily]:
    """Waiting lines. waiting: deployment, application, number, age of the oldest in seconds."""
    lines = list(waiting)
    tags = [labelled(deployment=deployment, application=app) for deployment, app, _, _ in lines]
    return [
        family("serve_deployment_queued_queries", zip(tags, (line[2] for line in lines), strict=True)),
        family("serve_deployment_queue_age_seconds", zip(tags, (line[3] for line in lines), strict=True)),
    ]


class Distribution:
    """Values in the buckets that all histograms have. values: those to begin with."""

    def __init__(self, *values: float) -> None:
        self._total = 0.0
        self._buckets = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        for value in values:
            self.add(value)

    def __repr__(self) -> str:
        return f"Distribution({self.count})"

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self._buckets)

    def add(self, value: float) -> None:
        """Note one value, at least 0."""
        self._total += value
        self._buckets[bisect_left(LATENCY_BOUNDS_MS, value)] += 1

    def sample(self) -> tuple[float, tuple[int, ...]]:
        """Their sum, and how many are in each bucket."""
        return self._total, tuple(self._buckets)


class LoopLag:
    """The longest delay of a loop within the last 10 to 20 s.

    Args:
        now: gives monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._since = now()
        self._peak_s = self._former_s = 0.0

    def __repr__(self) -> str:
        return f"LoopLag({self.worst_ms():.1f} ms)"

    def note(self, lag_s: float) -> None:
        """Something came that much later than it should have."""
        self._turn()
        self._peak_s = max(self._peak_s, lag_s)

    def worst_ms(self) -> float:
        """The longest delay, milliseconds."""
        self._turn()
        return round(max(self._peak_s, self._former_s) * 1000, 3)

    def family(self, **tags: str) -> MetricFamily:
        """The delay as a sample."""
        return family("serve_event_loop_lag_seconds", [(labelled(**tags), self.worst_ms() / 1000)])

    def _turn(self) -> None:
        now = self.now()
        if now - self._since >= _PEAK_S:
            self._former_s = self._peak_s if now - self._since < 2 * _PEAK_S else 0.0
            self._peak_s = 0.0
            self._since = now
