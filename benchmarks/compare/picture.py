"""The results as a picture: requests per second by connections, a panel a case. Needs matplotlib (extra `bench`)."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.compare.cases import BY_NAME
from benchmarks.compare.figures import Row, rows
from benchmarks.compare.results import Results

PANELS = ("noop", "fastapi")
STYLES: dict[str, dict[str, Any]] = {
    "servd": {"color": "#d62728", "linewidth": 3.0, "zorder": 5},
    "limit": {"color": "#222222", "linestyle": "--"},
    "uvicorn": {"color": "#1f77b4"},
    "uvicorn x2": {"color": "#1f77b4", "linestyle": ":"},
    "hypercorn": {"color": "#17a2b8"},
    "mosec": {"color": "#2ca02c"},
    "mosec-batch": {"color": "#2ca02c", "linestyle": ":"},
    "litserve": {"color": "#9467bd"},
    "ray": {"color": "#ff7f0e"},
    "ray-haproxy": {"color": "#ff7f0e", "linestyle": ":"},
}
NAMES = {
    "mosec-batch": "mosec, batches",
    "hypercorn": "Hypercorn",
    "litserve": "LitServe",
    "ray": "Ray Serve",
    "ray-haproxy": "Ray Serve, HAProxy",
}
LEAST_GAP = 1.23
"""Between neighbouring labels, as a factor."""


def draw(results: Results, path: Path) -> None:
    """Write the picture, PNG."""
    found = [row for row in rows(results.samples) if row.case in PANELS and row.value is not None]
    panels = [name for name in PANELS if any(row.case == name for row in found)]
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 5.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        panel(axis, name, [row for row in found if row.case == name])
    axes[0][0].set_ylabel("requests per second")
    about = results.about
    figure.text(
        0.01,
        0.01,
        f"{about['cpus']} CPUs, Python {about['python']}, {about['at'][:10]}; wrk on the same CPUs; medians of {about['rounds']} "
        "interleaved rounds, bands from lowest to highest",
        fontsize=8,
        color="#555555",
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def panel(axis: Axes, name: str, found: list[Row]) -> None:
    """One case: a line a system, its name at the line's end."""
    ends: dict[str, tuple[float, float]] = {}
    for system, style in STYLES.items():
        mine = sorted((row for row in found if row.system == system), key=lambda row: row.connections)
        if not mine:
            continue
        counts = [row.connections for row in mine]
        values = [row.value or 0.0 for row in mine]
        axis.plot(counts, values, marker="o", markersize=4, **{"linewidth": 1.6, **style})
        lows, highs = [row.lowest or 0.0 for row in mine], [row.highest or 0.0 for row in mine]
        axis.fill_between(counts, lows, highs, color=style["color"], alpha=0.10, linewidth=0)
        ends[system] = counts[-1], values[-1]
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    every = sorted({row.connections for row in found})
    axis.set_xticks(every, [str(count) for count in every])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlim(every[0] / 1.2, every[-1] * 9)
    axis.set_title(BY_NAME[name].title)
    axis.set_xlabel("connections")
    axis.grid(which="major", color="#dddddd")
    axis.spines[["top", "right"]].set_visible(False)
    for system, height in spread({system: end[1] for system, end in ends.items()}).items():
        weight = "bold" if system == "servd" else "normal"
        axis.text(
            ends[system][0] * 1.2,
            height,
            NAMES.get(system, system),
            color=STYLES[system]["color"],
            va="center",
            weight=weight,
        )


def spread(heights: dict[str, float]) -> dict[str, float]:
    """Heights of labels, pushed apart by a least factor; their order stays."""
    names = sorted(heights, key=heights.__getitem__)
    placed = dict(heights)
    for _ in range(200):
        for low, high in pairwise(names):
            if placed[high] < placed[low] * LEAST_GAP:
                middle = (placed[low] * placed[high]) ** 0.5
                placed[low], placed[high] = middle / LEAST_GAP**0.5, middle * LEAST_GAP**0.5
    return placed
