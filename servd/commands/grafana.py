"""The dashboard that `servd grafana` prints: what operators look at, from the metrics that servd exports."""

from dataclasses import dataclass
from typing import Any

RATE = "$__rate_interval"
"""Grafana puts an interval here that suits the scraper's."""

_APP = 'application=~"$application",application!=""'
_WIDTH, _HEIGHT, _IN_A_ROW = 8, 8, 3


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot. unit: by Grafana's names. queries: PromQL -> legend."""

    title: str
    unit: str
    queries: dict[str, str]


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}{{{_APP}}}[{RATE}]))"


def _quantiles(name: str, by: str) -> dict[str, str]:
    return {
        f"histogram_quantile({share}, {_rate(f'{name}_bucket', f'le, {by}')})": f"{{{{{by}}}}} p{100 * share:g}"
        for share in (0.5, 0.95, 0.99)
    }


def _gauge(name: str, by: str = "deployment") -> dict[str, str]:
    return {f"sum by ({by}) ({name}{{{_APP}}})": f"{{{{{by}}}}}"}


PANELS = (
    Panel("Requests by route", "reqps", {_rate("serve_num_http_requests", "route"): "{{route}}"}),
    Panel(
        "Answers other than 200",
        "reqps",
        {_rate("serve_num_http_error_requests", "route, error_code"): "{{route}} {{error_code}}"},
    ),
    Panel("Time to the end of the answer", "ms", _quantiles("serve_http_request_latency_ms", "route")),
    Panel(
        "Requests by deployment", "reqps", {_rate("serve_deployment_request_counter", "deployment"): "{{deployment}}"}
    ),
    Panel("Exceptions", "reqps", {_rate("serve_deployment_error_counter", "deployment"): "{{deployment}}"}),
    Panel("Time in the handler", "ms", _quantiles("serve_deployment_processing_latency_ms", "deployment")),
    Panel(
        "Replicas",
        "short",
        {
            f"sum by (deployment) (serve_deployment_wanted_replicas{{{_APP}}})": "{{deployment}} wanted",
            f"sum by (deployment) (serve_deployment_running_replicas{{{_APP}}})": "{{deployment}} running",
        },
    ),
    Panel(
        "Replicas that failed",
        "short",
        {
            f"sum by (deployment) (increase(serve_deployment_replica_failures_total{{{_APP}}}[{RATE}]))": "{{deployment}}",
        },
    ),
    Panel("Requests that wait for a replica", "short", _gauge("serve_deployment_queued_queries")),
    Panel("Requests that run", "short", _gauge("serve_replica_processing_queries")),
    Panel("Memory, resident", "bytes", _gauge("serve_replica_memory_bytes")),
    Panel("CPU, cores", "short", {_rate("serve_replica_cpu_seconds_total", "deployment"): "{{deployment}}"}),
    Panel("Descriptors", "short", _gauge("serve_replica_open_descriptors")),
    Panel(
        "Longest delay of an event loop", "s", {"max by (component) (serve_event_loop_lag_seconds)": "{{component}}"}
    ),
    Panel(
        "Clients",
        "short",
        {
            "sum(serve_proxy_connections)": "connections",
            "sum(serve_num_ongoing_http_requests)": "requests under way",
        },
    ),
)


def dashboard() -> dict[str, Any]:
    """A document to import in Grafana, which asks for the data source."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "title": "servd",
        "uid": "servd",
        "schemaVersion": 38,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "application",
                    "label": "Application",
                    "type": "query",
                    "datasource": source,
                    "query": "label_values(serve_application_status, application)",
                    "refresh": 2,
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [_drawn(number, panel, source) for number, panel in enumerate(PANELS)],
    }


def _drawn(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    row, column = divmod(number, _IN_A_ROW)
    return {
        "id": number + 1,
        "title": panel.title,
        "type": "timeseries",
        "datasource": source,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": source, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries.items())
        ],
    }
