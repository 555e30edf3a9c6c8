"""Nearest neighbours among many vectors: eight replicas that share one table of 400 MB."""

import numpy as np
from starlette.requests import Request

from servd import deployment

WIDTH = 128


@deployment(preload=True, num_replicas=8)
class Neighbours:
    """Answers with the rows that are most like a given one."""

    def __init__(self, rows: int = 800_000) -> None:
        # once, before the replicas are forked: they share these pages
        table = np.random.default_rng(1).standard_normal((rows, WIDTH), dtype=np.float32)
        self.table = table / np.linalg.norm(table, axis=1, keepdims=True)

    def on_replica_start(self) -> None:
        # in each replica: its own state
        self.answered = 0

    def __call__(self, request: Request) -> dict[str, object]:
        row = int(request.query_params.get("row", 0)) % len(self.table)
        likeness = self.table @ self.table[row]
        best = np.argpartition(-likeness, 3)[:3]
        self.answered += 1
        return {"row": row, "nearest": sorted(best.tolist(), key=lambda found: -likeness[found])}


def build(args: dict[str, int]) -> object:
    """The application; `rows` among the arguments sets the size of the table."""
    return Neighbours.bind(int(args.get("rows", 800_000)))
