"""The plot of docs/howto/autoscaling.md, from the autoscaler's own decisions: `python -m tools.autoscaling_plot` writes it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servd.controller.plan.autoscaler import AUTOSCALING_DEFAULTS, Samples, decide, first_target, loads_of
from servd.controller.plan.scaling import WARM_UP_S

PICTURE = Path(__file__).parents[1] / "docs" / "howto" / "autoscaling.svg"
STEP_S, END_S, START_S = 0.5, 1200.0, 2.0
"""Grain and length of the history; how long a replica takes to start."""
LOAD = ((0.0, 2), (120.0, 12), (360.0, 3))
"""(from, requests under way at all replicas together)."""
_COMMON = {"min_replicas": 1, "max_replicas": 8, "target_num_ongoing_requests_per_replica": 2.0}
CONFIGS: dict[str, Mapping[str, Any]] = {
    "defaults": {**AUTOSCALING_DEFAULTS, **_COMMON},
    "quick": {
        **AUTOSCALING_DEFAULTS,
        **_COMMON,
        "look_back_period_s": 5.0,
        "upscale_delay_s": 5.0,
        "downscale_delay_s": 60.0,
    },
    "hasty": {
        **AUTOSCALING_DEFAULTS,
        **_COMMON,
        "look_back_period_s": 20.0,
        "upscale_delay_s": 1.0,
        "downscale_delay_s": 60.0,
    },
}
COLOURS = {"defaults": "#1565c0", "quick": "#2e7d32", "hasty": "#c2410c"}

Steps = list[tuple[float, float]]
"""(from, value), each until the next one."""


def load_at(at: float) -> int:
    """Requests under way at a moment."""
    return [requests for since, requests in LOAD if since <= at][-1]


def replicas(config: Mapping[str, Any]) -> Steps:
    """Replicas that are wanted over the history; every one that runs has an equal part of the load."""
    wanted, lean, lean_since = first_target(config), 0, 0.0
    running = {number: Samples() for number in range(wanted)}
    starting: list[float] = []
    found: Steps = [(0.0, wanted)]
    window = config["look_back_period_s"]
    for step in range(int(END_S / STEP_S) + 1):
        now = step * STEP_S
        for ready_at in [at for at in starting if at <= now]:
            starting.remove(ready_at)
            running[max(running) + 1] = Samples()
        for samples in running.values():
            samples.add(now, load_at(now) / len(running), window)
        samples = list(running.values())
        loads = loads_of(samples, now - window, now, config.get("aggregation_function", "mean"))
        full_at = max(sample.began_at for sample in samples) + min(window, WARM_UP_S)
        decision = decide(config, wanted, loads, 0, lean, lean_since, now, full_at=full_at)
        lean, lean_since = decision.lean, decision.lean_since
        if decision.target != wanted:
            starting += [now + START_S] * (decision.target - wanted)
            for number in sorted(running)[decision.target :]:
                del running[number]
            wanted = decision.target
            found.append((now, wanted))
    return found


def _path(steps: Steps, x: Any, y: Any) -> str:
    parts = [f"M{x(0)} {y(steps[0][1])}"]
    for at, value in steps[1:]:
        parts.append(f"H{x(at)}V{y(value)}")
    return "".join([*parts, f"H{x(END_S)}"])


def picture() -> str:
    """The SVG: load above, replicas below, over minutes."""
    left, width, heights = 54, 560, {"load": (40, 14), "replicas": (210, 8)}

    def x(at: float) -> float:
        return round(left + width * at / END_S, 1)

    def y_of(panel: str) -> Any:
        top, most = heights[panel]
        return lambda value: round(top + 110 * (1 - value / most), 1)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" font-size="12" role="img" '
        'aria-label="Load that rises from 2 to 12 requests and falls to 3, and the replicas that three configs want">',
        '<rect width="640" height="360" fill="#fff"/>',
    ]
    for panel, title in (("load", "requests under way"), ("replicas", "replicas wanted")):
        top, most = heights[panel]
        y = y_of(panel)
        parts.append(f'<text x="{left}" y="{top - 12}" fill="#222">{title}</text>')
        for value in range(0, most + 1, 2):
            parts.append(f'<path d="M{left} {y(value)}H{left + width}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 8}" y="{y(value) + 4}" text-anchor="end" fill="#555">{value}</text>')
    parts.append(f'<path d="{_path(list(LOAD), x, y_of("load"))}" fill="none" stroke="#222" stroke-width="2"/>')
    for row, (name, config) in enumerate(CONFIGS.items()):
        colour, steps = COLOURS[name], replicas(config)
        parts.append(
            f'<path d="{_path(steps, x, y_of("replicas"))}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{left + 300 + row * 85}" y="198" fill="{colour}">{name}</text>'
        )
    for minute in range(0, math.floor(END_S / 60) + 1, 2):
        parts.append(f'<text x="{x(minute * 60)}" y="340" text-anchor="middle" fill="#555">{minute}</text>')
    parts.append('<text x="610" y="356" text-anchor="end" fill="#555">minutes</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the picture, and print when each count was wanted."""
    PICTURE.write_text(picture())
    for name, config in CONFIGS.items():
        print(name, ", ".join(f"{at:g} s: {count:g}" for at, count in replicas(config)))


if __name__ == "__main__":
    main()
