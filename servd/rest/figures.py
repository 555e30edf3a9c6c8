"""The figures of replicas and deployments, now and over the last minutes, under `/api/servd/v1/figures`."""

from starlette.requests import Request
from starlette.responses import Response

from servd.documents.controller_views import ScalingView
from servd.documents.figure_views import (
    HISTORY_S,
    DeploymentFigures,
    DeploymentHistory,
    Figures,
    ReplicaFigures,
    RequestFigures,
)
from servd.observability.figures import STEP_S, WINDOW_S
from servd.rest import figure_shapes as shapes
from servd.rest.exchange import Resource, json_answer, number_parameter


def figures_resource(figures: Figures) -> Resource:
    """GET: everything as it is now; with `?application=` and `?deployment=` only theirs."""

    async def get(request: Request) -> Response:
        return json_answer(figures_body(figures, *_whose(request)))

    return {"GET": get}


def history_resource(figures: Figures) -> Resource:
    """GET: the last minutes of deployments; with `?since=` only what came later."""

    async def get(request: Request) -> Response:
        since = number_parameter(request, "since", 0.0)
        found = figures.history(*_whose(request), since)
        body: shapes.FiguresHistory = {
            "at": figures.at(),
            "step_s": STEP_S,
            "span_s": HISTORY_S,
            "deployments": {name: _columns(one) for name, one in found.items()},
        }
        return json_answer(body)

    return {"GET": get}


def _whose(request: Request) -> tuple[str | None, str | None]:
    return request.query_params.get("application"), request.query_params.get("deployment")


def figures_body(figures: Figures, app: str | None = None, name: str | None = None) -> shapes.Figures:
    """GET /api/servd/v1/figures."""
    applications: dict[str, shapes.ApplicationFigures] = {}
    for full_name, one in figures.deployments(app, name).items():
        applications.setdefault(one.app, {"deployments": {}})["deployments"][full_name] = _deployment(one)
    return {"at": figures.at(), "window_s": WINDOW_S, "applications": applications}


def _calls(calls: RequestFigures) -> shapes.RequestFigures:
    median, high, highest = calls.quantiles_ms
    return {
        "ongoing": calls.ongoing,
        "waiting": calls.waiting,
        "requests": calls.requests,
        "errors": calls.errors,
        "requests_per_s": calls.requests_per_s,
        "p50_ms": median,
        "p95_ms": high,
        "p99_ms": highest,
    }


def _deployment(one: DeploymentFigures) -> shapes.DeploymentFigures:
    return {
        "name": one.name,
        "wanted_replicas": one.wanted,
        "running_replicas": one.running,
        "restarts": one.restarts,
        **_calls(one.calls),
        "memory_bytes": one.memory_bytes,
        "cpu_share": one.cpu_share,
        "decision": None if one.decision is None else _decision(one.decision),
        "replicas": {replica_id: _replica(replica) for replica_id, replica in one.replicas.items()},
    }


def _replica(one: ReplicaFigures) -> shapes.ReplicaFigures:
    return {
        "state": one.state,
        "pid": one.pid,
        "age_s": one.age_s,
        **_calls(one.calls),
        "memory_bytes": one.memory_bytes,
        "cpu_share": one.cpu_share,
        "descriptors": one.descriptors,
        "threads": one.threads,
    }


def _decision(one: ScalingView) -> shapes.Decision:
    return {"at": one.at, "before": one.before, "after": one.after, "reason": one.reason}


def _columns(one: DeploymentHistory) -> shapes.DeploymentHistory:
    samples = one.samples
    return {
        "application": one.app,
        "name": one.name,
        "at": [sample.at for sample in samples],
        "requests_per_s": [sample.requests_per_s for sample in samples],
        "errors_per_s": [sample.errors_per_s for sample in samples],
        "p50_ms": [sample.quantiles_ms[0] for sample in samples],
        "p95_ms": [sample.quantiles_ms[1] for sample in samples],
        "p99_ms": [sample.quantiles_ms[2] for sample in samples],
        "wanted_replicas": [sample.wanted for sample in samples],
        "running_replicas": [sample.running for sample in samples],
        "ongoing": [sample.ongoing for sample in samples],
        "waiting": [sample.waiting for sample in samples],
        "memory_bytes": [sample.memory_bytes for sample in samples],
        "cpu_share": [sample.cpu_share for sample in samples],
    }
