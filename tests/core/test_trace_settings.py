"""What the environment asks of traces, and which of them are recorded."""

import random

import pytest

from servd.observability import spans
from servd.observability.spans import (
    NEVER,
    Sampling,
    TraceSettings,
    ratio_of,
    trace_settings,
    traces_endpoint,
    variables_for,
)
from servd.wire.trace_context import TraceContext

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
OWN = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/spans"}
ALL = Sampling()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        (BASE, TraceSettings("http://c:4318/v1/traces", ALL)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/otlp/"}, TraceSettings("http://c:4318/otlp/v1/traces", ALL)),
        (OWN, TraceSettings("https://c/spans", ALL)),
        ({**BASE, **OWN}, TraceSettings("https://c/spans", ALL)),
        ({**BASE, "OTEL_SDK_DISABLED": "True"}, None),
        ({**BASE, "OTEL_SDK_DISABLED": "false"}, TraceSettings("http://c:4318/v1/traces", ALL)),
        ({**BASE, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**BASE, "OTEL_TRACES_EXPORTER": "console, otlp"}, TraceSettings("http://c:4318/v1/traces", ALL)),
        ({**OWN, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, TraceSettings("https://c/spans", ALL)),
        (
            {**OWN, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            TraceSettings("https://c/spans", ALL),
        ),
        # what an option says wins over everything
        (
            {**BASE, "OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **variables_for("http://d/x")},
            TraceSettings("http://d/x", ALL),
        ),
    ],
)
def test_endpoint(environment: dict[str, str], expected: TraceSettings | None) -> None:
    assert trace_settings(environment) == expected


def test_logs_do_not_show_who_sends() -> None:
    assert TraceSettings("https://me:secret@c:4318/x?key=secret", ALL).shown == "https://c:4318/x"
    assert TraceSettings("http://c/@me/x#secret", ALL).shown == "http://c/@me/x"


@pytest.mark.parametrize(
    "url",
    ["me:secret@c:4318", "https://me:secret@c:0/", "http://me:se/cret@[c", "ftp://c/x?secret", "http://?a=secret@b"],
)
def test_errors_do_not_show_who_sends(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL such as") as error:
        trace_settings({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url})
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_on"}, Sampling(1.0, follows_parent=False)),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, Sampling(0.0, follows_parent=False)),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            Sampling(0.25, follows_parent=False),
        ),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, ALL),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, Sampling(0.0)),
        ({"OTEL_TRACES_SAMPLER": "Parentbased_TraceIDRatio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, Sampling(0.5)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, ALL),
        ({"RAY_SERVE_TRACING_SAMPLING_RATIO": "0.01", "OTEL_TRACES_SAMPLER": "always_off"}, Sampling(0.01)),
        ({"RAY_SERVE_TRACING_SAMPLING_RATIO": "0.01", "SERVD_TRACING_SAMPLING_RATIO": "0.1"}, Sampling(0.1)),
    ],
)
def test_sampler(environment: dict[str, str], expected: Sampling) -> None:
    found = trace_settings({**BASE, **environment})
    assert found is not None
    assert found.sampling == expected


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:99999/"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({**BASE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        (
            {**BASE, "OTEL_TRACES_EXPORTER": "console"},
            "OTEL_TRACES_EXPORTER=console: servd exports traces by otlp only",
        ),
        ({**BASE, "OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER must be one of always_on,"),
        ({**BASE, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({**BASE, "SERVD_TRACING_SAMPLING_RATIO": "x"}, "SERVD_TRACING_SAMPLING_RATIO"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        trace_settings(environment)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/api/v2/otlp", "https://c/api/v2/otlp"),
    ],
)
def test_the_options_endpoint(url: str, expected: str) -> None:
    assert traces_endpoint(url, "--trace-endpoint") == expected


@pytest.mark.parametrize("text", ["", "-0.1", "1.1", "nan", "all"])
def test_no_ratio(text: str) -> None:
    with pytest.raises(ValueError, match="it must be a number from 0 to 1"):
        ratio_of(text, "it")


def trace(low: str, flags: int) -> TraceContext:
    return TraceContext("a" * 16 + low, "b" * 16, flags)


@pytest.mark.parametrize(
    ("sampling", "parent", "wanted"),
    [
        (Sampling(0.0), trace("f" * 16, 1), True),
        (Sampling(1.0), trace("0" * 16, 0), False),
        (Sampling(0.5, follows_parent=False), trace("7" + "f" * 15, 0), True),
        (Sampling(0.5, follows_parent=False), trace("8" + "0" * 15, 1), False),
        (Sampling(1.0, follows_parent=False), trace("f" * 16, 0), True),
        (Sampling(0.0, follows_parent=False), trace("0" * 16, 1), False),
    ],
)
def test_who_is_part_of_a_trace_already(sampling: Sampling, parent: TraceContext, wanted: bool) -> None:
    assert sampling.wants(parent) is wanted


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (1.0, 4000, 4000), (0.25, 850, 1150)])
def test_who_begins_a_trace(ratio: float, low: int, high: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SYSTEM", random.Random(7))
    assert low <= sum(Sampling(ratio).begins_trace() for _ in range(4000)) <= high


@pytest.mark.parametrize("ratio", [1.0, 0.25, 0.01])
def test_gaps_are_as_if_each_request_were_asked(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SYSTEM", random.Random(7))
    gaps = [Sampling(ratio).gap() for _ in range(4000)]
    assert min(gaps) == 1
    assert sum(gaps) / 4000 == pytest.approx(1 / ratio, rel=0.05)
    assert gaps.count(1) / 4000 == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize("ratio", [0.0, 5e-324, 1e-300])
def test_so_small_a_ratio_that_no_request_begins_a_trace(ratio: float) -> None:
    assert Sampling(ratio).gap() == NEVER
