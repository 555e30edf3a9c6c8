"""Whether this process records spans, which, and where they go: what the environment says. Standard library only.

Variables are OpenTelemetry's, and Ray Serve's for the ratio; options of `servd start` and `servd run` set the same ones.
"""

import os
import random
from collections.abc import Mapping
from urllib.parse import urlsplit

from servd.ground.quick_dataclass import dataclass
from servd.observability.trace_context import TraceContext

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
RATIO = "TRACING_SAMPLING_RATIO"
"""Of servd and of Ray Serve (`RAY_SERVE_...`); it wins over `OTEL_TRACES_SAMPLER`."""
MISSING = "exporting traces needs OpenTelemetry: pip install 'servd-serve[otel]'"

_BASE_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PATH = "/v1/traces"
_HTTP = "http/protobuf"
_SAMPLERS = ("always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
             "parentbased_traceidratio")  # fmt: skip
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which traces are recorded. ratio: of those that begin here, in [0, 1]. follows_parent: others as their callers have it."""

    ratio: float = 1.0
    follows_parent: bool = True

    def begins_trace(self) -> bool:
        """Whether a request that is part of no trace begins one; another answer each time."""
        return random.random() < self.ratio

    def wants(self, parent: TraceContext) -> bool:
        """Whether a request that is part of a trace already is recorded.

        Source: OpenTelemetry, TraceIdRatioBased: by the low 64 bits of the trace's id, so that all who use a ratio agree.
        """
        if self.follows_parent:
            return parent.is_sampled
        return int(parent.trace_id[-_DIGITS:], 16) < self.ratio * 16.0**_DIGITS


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """endpoint: full URL to which spans are posted, as OTLP in protobuf."""

    endpoint: str
    sampling: Sampling

    @property
    def shown(self) -> str:
        """The endpoint for logs: who it is that sends is nobody's business."""
        parts = urlsplit(self.endpoint)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def trace_settings(environment: Mapping[str, str] | None = None) -> TraceSettings | None:
    """What the environment asks for, by default this process's; None: nothing is recorded.

    Raises:
        ValueError: it asks for what cannot be; the text names the variable.
    """
    given = os.environ if environment is None else environment
    said = {name: value.strip() for name, value in given.items() if value.strip()}
    endpoint = said.get(ENDPOINT) or said.get(_BASE_ENDPOINT, "")
    if not endpoint or said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if "otlp" not in said.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        return None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if name in said:
            if said[name] != _HTTP:
                raise ValueError(f"{name}={said[name]}: servd exports traces as {_HTTP} only (collectors: port 4318)")
            break
    if ENDPOINT not in said:
        endpoint = f"{checked_url(endpoint, _BASE_ENDPOINT).rstrip('/')}{_PATH}"
    return TraceSettings(checked_url(endpoint, ENDPOINT), _sampling(said))


def traces_endpoint(url: str, name: str) -> str:
    """The endpoint behind an option's value: of a bare address the path is the usual one.

    Raises:
        ValueError: it is no such URL. name: of the option, for the text.
    """
    return f"{url.rstrip('/')}{_PATH}" if not urlsplit(checked_url(url, name)).path.strip("/") else url


def variables_for(endpoint: str) -> dict[str, str]:
    """What lets a process and those that it starts send spans there, whatever else their environment says."""
    return {
        ENDPOINT: endpoint,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _HTTP,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_SDK_DISABLED": "false",
    }


def checked_url(url: str, name: str) -> str:
    """The URL; name: of where it was given, for the text.

    Raises:
        ValueError: it has no scheme http or https, or no host.
    """
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fine = False
    if not is_fine:
        raise ValueError(f"{name}: {url!r} is no URL such as http://127.0.0.1:4318")
    return url


def ratio_of(text: str, name: str) -> float:
    """The share of traces to record.

    Raises:
        ValueError: no number in [0, 1]. name: of where it was given, for the text.
    """
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, it is {text!r}")
    return ratio


def _sampling(said: Mapping[str, str]) -> Sampling:
    for name in (f"SERVD_{RATIO}", f"RAY_SERVE_{RATIO}"):
        if name in said:
            return Sampling(ratio_of(said[name], name))
    sampler = said.get("OTEL_TRACES_SAMPLER", "parentbased_always_on").lower()
    if sampler not in _SAMPLERS:
        raise ValueError(f"OTEL_TRACES_SAMPLER must be one of {', '.join(_SAMPLERS)}, it is {sampler!r}")
    kind = sampler.removeprefix("parentbased_")
    ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind)
    if ratio is None:
        ratio = ratio_of(said.get("OTEL_TRACES_SAMPLER_ARG", "1"), "OTEL_TRACES_SAMPLER_ARG")
    return Sampling(ratio, follows_parent=kind != sampler)
