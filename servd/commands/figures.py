"""Figures of deployments and replicas as tables, for `servd status -v` and `servd top`."""

from collections.abc import Callable, Iterator
from typing import Any

from servd.commands.console import age, table

HEAD = (
    "name", "state", "age", "restarts", "cpu", "memory", "fds", "threads", "ongoing", "waiting", "req/s", "p50 ms", "p95 ms",
    "p99 ms", "errors",
)  # fmt: skip
"""Of deployments, and of their replicas below each. Requests per second, latencies and errors are of the last minute."""

DISPENSABLE = (
    "threads", "fds", "p50 ms", "waiting", "p99 ms", "restarts", "age", "ongoing", "p95 ms", "errors", "cpu", "memory", "req/s",
    "state",
)  # fmt: skip
"""Columns that a narrow terminal does without, these first."""

_ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "cpu": lambda one: one["cpu_share"] or 0.0,
    "memory": lambda one: one["memory_bytes"] or 0,
    "rate": lambda one: one["requests_per_s"] or 0.0,
    "latency": lambda one: one["p99_ms"] or 0.0,
    "errors": lambda one: one["errors"] or 0,
}
ORDERS = tuple(_ORDERS)
"""By what deployments and replicas can be sorted, the most first."""


def figure_rows(figures: dict[str, Any], order: str = "") -> Iterator[tuple[str, ...]]:
    """Rows under `HEAD` of the answer of `/figures`, replicas below their deployments; order: one of `ORDERS`, "" as they are."""
    found = [one for app in figures["applications"].values() for one in app["deployments"].items()]
    for full_name, deployment in _sorted(found, order):
        count = f"{deployment['running_replicas']}/{deployment['wanted_replicas']}"
        yield _row(full_name, count, "", str(deployment["restarts"]), deployment)
        for replica_id, replica in _sorted(deployment["replicas"].items(), order):
            yield _row(f"  {replica_id}", replica["state"], age(replica["age_s"]), "", replica)


def decision_lines(figures: dict[str, Any]) -> Iterator[str]:
    """What the autoscaler decided last, a line for each deployment of which it has."""
    for app in figures["applications"].values():
        for full_name, deployment in app["deployments"].items():
            last = deployment["decision"]
            if last is not None:
                when = age(figures["at"] - last["at"])
                yield f"{full_name}: {last['before']} -> {last['after']} replicas, {when} ago: {last['reason']}"


def _sorted(found: Any, order: str) -> Any:
    return sorted(found, key=lambda item: _ORDERS[order](item[1]), reverse=True) if order else found


def _row(name: str, state: str, since: str, restarts: str, one: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        state,
        since,
        restarts,
        _shown(one["cpu_share"], lambda share: f"{100 * share:.0f}%"),
        _shown(one["memory_bytes"], size),
        # of a deployment nobody adds these up
        _shown(one.get("descriptors"), str),
        _shown(one.get("threads"), str),
        str(one["ongoing"]),
        str(one["waiting"]),
        _shown(one["requests_per_s"], lambda rate: f"{rate:.1f}"),
        *(_shown(one[name], lambda latency: f"{latency:.1f}") for name in ("p50_ms", "p95_ms", "p99_ms")),
        _shown(one["errors"], str),
    )


def _shown(value: Any, word: Callable[[Any], str]) -> str:
    return "" if value is None else word(value)


def size(number: int) -> str:
    """Bytes for people: 512K, 118M, 1.5G."""
    if number >= 2**30:
        return f"{number / 2**30:.1f}G"
    return f"{number / 2**20:.0f}M" if number >= 2**20 else f"{number / 2**10:.0f}K"


def show_figures(figures: dict[str, Any], order: str = "") -> None:
    """Print all of it once."""
    table(HEAD, figure_rows(figures, order), DISPENSABLE)
    for line in decision_lines(figures):
        print(line)
