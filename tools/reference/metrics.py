"""The page of all metrics, from the list that the processes count by."""

from servd.observability.measures import CONTRACT
from tools.reference.tables import MADE, table

_INTRO = """# Every metric

What `GET /metrics` of the admin port has, and of `servd start --metrics-port`. Who counts what, and what happens to counts when a process ends, is in
[Logs, metrics, timings](../observability.md#metrics). A histogram has `_bucket`, `_sum` and `_count` behind its name, as Prometheus reads them.

"""


def metrics() -> str:
    """The page."""
    rows = [(f"`{name}`", kind, text) for name, (kind, text) in sorted(CONTRACT.items())]
    return MADE + _INTRO + table(("Metric", "Type", "Meaning"), rows)
