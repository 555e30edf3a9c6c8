"""Names of the built-in request routers, and what callers are told of one. No models: proxies load this."""

from collections.abc import Mapping
from typing import Any

POWER_OF_TWO, ROUND_ROBIN, LEAST_LOADED = "power_of_two", "round_robin", "least_loaded"
CONSISTENT_HASH, PREFIX = "consistent_hash", "prefix"
RAY_CLASSES = {
    "PowerOfTwoChoicesRequestRouter": POWER_OF_TWO,
    "RoundRobinRouter": ROUND_ROBIN,
    "CapacityQueueRouter": LEAST_LOADED,
    "ConsistentHashRouter": CONSISTENT_HASH,
    "PrefixCacheAffinityRouter": PREFIX,
}
"""Classes of `ray.serve` and `ray.llm` -> what does the same here."""
DEFAULT_CLASS = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"

VIRTUAL_NODES = 100
MATCH_RATE = 0.1
REMEMBERED_CHARS, KEPT_CHARS = 400_000, 360_000

_NAMES = {*RAY_CLASSES.values()}
_MEANS_NOTHING = ("num_fallback_replicas", "do_eviction")
"""Options of Ray Serve's classes of which only one value is taken, that which holds here."""


def rule_name(path: str) -> str | None:
    """The built-in behind a name or an import path of Ray Serve's; None for code of the user's."""
    if path in _NAMES:
        return path
    module, _, name = path.replace(":", ".").rpartition(".")
    return RAY_CLASSES.get(name) if module.partition(".")[0] == "ray" else None


def rule_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What callers are told of a checked config: `DeploymentTargets.router`."""
    given = config or {}
    name = rule_name(given.get("request_router_class", DEFAULT_CLASS))
    if name is None or name == POWER_OF_TWO:
        return {}
    options = given.get("request_router_kwargs") or {}
    return {"name": name, **{key: value for key, value in options.items() if key not in _MEANS_NOTHING}}
