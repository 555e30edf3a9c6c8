"""`request_router_config`: by which rule callers choose among the replicas of a deployment."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError

from servd.documents.checked import Document, Fault
from servd.documents.router_names import (
    CONSISTENT_HASH,
    DEFAULT_CLASS,
    KEPT_CHARS,
    LEAST_LOADED,
    MATCH_RATE,
    POWER_OF_TWO,
    PREFIX,
    REMEMBERED_CHARS,
    ROUND_ROBIN,
    VIRTUAL_NODES,
    rule_name,
)

MAX_VIRTUAL_NODES = 1000
MAX_REMEMBERED_CHARS = 10_000_000
"""Some 130 MiB in each caller, where all texts differ."""
_NEAREST = (
    (PREFIX, ("prefix", "cache", "kv", "prompt")),
    (CONSISTENT_HASH, ("hash", "session", "sticky", "affinity", "ring")),
    (ROUND_ROBIN, ("round", "robin", "rotat", "cycl", "uniform", "random")),
    (LEAST_LOADED, ("least", "load", "queue", "capacity", "throughput", "short")),
)
"""Name -> parts of what people call such a class."""
_STATS = "replicas say with each answer how busy they are, and which models they hold"
_BACKOFF = "a request that finds all replicas full waits in line, and is sent as soon as one has room"
ROUTER_DEFAULTS: Mapping[str, tuple[float, str]] = {
    "request_routing_stats_period_s": (10, _STATS),
    "request_routing_stats_timeout_s": (30, _STATS),
    "initial_backoff_s": (0.025, _BACKOFF),
    "backoff_multiplier": (2, _BACKOFF),
    "max_backoff_s": (0.5, _BACKOFF),
}
"""Keys that documents of today spell out -> what they say then, and why nothing else is taken."""


class _NoOptions(Document):
    """Of rules that have none."""


class ConsistentHashOptions(Document):
    """See `servd.calls.routing_rules.ConsistentHash`."""

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9_!#$%&'*+.^`|~-]+$", max_length=256)] | None = None
    num_virtual_nodes: Annotated[int, Field(gt=0, le=MAX_VIRTUAL_NODES)] = VIRTUAL_NODES
    load_factor: Annotated[float, Field(ge=1)] | None = None

    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {"num_fallback_replicas": {"const": 2}}

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Takes the default of Ray Serve's further option out, refuses others."""
        if raw.pop("num_fallback_replicas", 2) == 2:
            return []
        reason = (
            "servd tries all replicas in the ring's order: a full one passes a request on to the next; leave it out"
        )
        return [(("num_fallback_replicas",), reason)]


class PrefixOptions(Document):
    """See `servd.calls.routing_rules.PrefixAffinity`."""

    imbalanced_threshold: Annotated[float, Field(ge=0)] | None = None
    match_rate_threshold: Annotated[float, Field(ge=0, le=1)] = MATCH_RATE
    eviction_threshold_chars: Annotated[int, Field(gt=0, le=MAX_REMEMBERED_CHARS)] = REMEMBERED_CHARS
    eviction_target_chars: Annotated[int, Field(ge=0, le=MAX_REMEMBERED_CHARS)] = KEPT_CHARS

    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {"do_eviction": {"const": True}}
    hints: ClassVar[Mapping[str, str]] = {
        "eviction_interval_secs": "what is remembered is cut as soon as it is above eviction_threshold_chars",
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """What is remembered is always bounded."""
        faults: list[Fault] = []
        if raw.pop("do_eviction", True) is not True:
            faults.append((("do_eviction",), "what is remembered is always bounded: leave it out"))
        most, kept = (raw.get(name) for name in ("eviction_threshold_chars", "eviction_target_chars"))
        if isinstance(most or REMEMBERED_CHARS, int) and isinstance(kept, int) and kept > (most or REMEMBERED_CHARS):
            reason = (
                f"eviction_target_chars ({kept}) must be at most eviction_threshold_chars ({most or REMEMBERED_CHARS})"
            )
            faults.append((("eviction_target_chars",), reason))
        return faults


_OPTIONS: Mapping[str, type[Document]] = {
    POWER_OF_TWO: _NoOptions,
    ROUND_ROBIN: _NoOptions,
    LEAST_LOADED: _NoOptions,
    CONSISTENT_HASH: ConsistentHashOptions,
    PREFIX: PrefixOptions,
}


class RequestRouterConfig(Document):
    """Which replica a request goes to.

    request_router_class: a built-in by its name, or by the import path of Ray Serve's class that does the same.
    request_router_kwargs: its options. Source: Ray Serve 2.60.
    """

    request_router_class: str = DEFAULT_CLASS
    request_router_kwargs: dict[str, Any] = Field(default_factory=dict)

    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"const": value} for name, (value, _) in ROUTER_DEFAULTS.items()
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Refuses classes of user code, options that the rule does not have, and amounts that have no meaning here."""
        faults: list[Fault] = []
        for name, (value, reason) in ROUTER_DEFAULTS.items():
            if raw.pop(name, value) not in (value, None):
                faults.append(((name,), f"{reason}; leave it out"))
        given: Any = raw.get("request_router_class", DEFAULT_CLASS)
        if isinstance(given, type):
            raw["request_router_class"] = given = f"{given.__module__}:{given.__qualname__}"
        if raw.get("request_router_kwargs", {}) is None:
            del raw["request_router_kwargs"]
        kwargs = raw.get("request_router_kwargs", {})
        if isinstance(given, str):
            rule = rule_name(given)
            if rule is None:
                faults.append((("request_router_class",), _refusal(given)))
            elif isinstance(kwargs, Mapping):
                faults += [(("request_router_kwargs", *loc), reason) for loc, reason in _option_faults(rule, kwargs)]
        return faults

    @property
    def is_spelled_out(self) -> bool:
        """Whether it is what today's Ray Serve writes where nobody has said anything."""
        return self.request_router_class == DEFAULT_CLASS and not self.request_router_kwargs


def take_out_default_router(raw: dict[str, Any]) -> None:
    """Let a `request_router_config` that nobody wrote be as if it were not there: clients of 2.5 do not know it."""
    config = raw.get("request_router_config", {})
    try:
        checked = RequestRouterConfig.model_validate(config or {}) if isinstance(config, Mapping | None) else config
    except ValidationError:
        # told where it stands
        return
    if isinstance(checked, RequestRouterConfig) and checked.is_spelled_out:
        raw.pop("request_router_config", None)


def _refusal(path: str) -> str:
    words = path.replace(":", ".").rpartition(".")[2].lower()
    nearest = next((name for name, parts in _NEAREST if any(part in words for part in parts)), POWER_OF_TWO)
    return (
        f"servd runs no routers of user code, since no user code runs in a proxy: the nearest built-in is {nearest!r}, "
        f"of {', '.join(map(repr, _OPTIONS))}"
    )


def _option_faults(name: str, kwargs: Mapping[str, Any]) -> list[Fault]:
    try:
        _OPTIONS[name].model_validate(dict(kwargs))
    except ValidationError as error:
        return [(problem["loc"], str(problem["msg"])) for problem in error.errors(include_url=False)]
    return []
