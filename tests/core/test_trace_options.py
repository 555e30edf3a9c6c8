"""`--trace-endpoint` and `--trace-ratio`: what they set, and what they refuse and warn of."""

import os

import pytest
import typer

from servd.commands import cli_options


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the test's own, that knows nothing of OpenTelemetry."""
    kept = {name: value for name, value in os.environ.items() if "OTEL" not in name and "TRACING" not in name}
    monkeypatch.setattr("os.environ", kept)


def test_what_the_options_set(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp", reason="needs OpenTelemetry: pip install 'servd-serve[otel]'")
    os.environ["OTEL_SDK_DISABLED"] = "true"
    cli_options.record_traces("http://127.0.0.1:4318")
    cli_options.record_share_of_traces(0.01)
    cli_options.look_at_traces()
    settings = cli_options.trace_settings(os.environ)
    assert settings is not None
    assert (settings.endpoint, settings.sampling.ratio) == ("http://127.0.0.1:4318/v1/traces", 0.01)
    assert capsys.readouterr().err == ""


def test_without_the_package_the_option_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_options, "is_there", lambda _: False)
    with pytest.raises(typer.Exit):
        cli_options.record_traces("http://127.0.0.1:4318")
    assert (
        "--trace-endpoint: exporting traces needs OpenTelemetry: pip install 'servd-serve[otel]'"
        in capsys.readouterr().err
    )
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4318"
    cli_options.look_at_traces()
    assert "Warning: no traces are exported: exporting" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://h:4317", "http://", ""])
def test_an_endpoint_that_is_no_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        cli_options.record_traces(url)
    assert f"--trace-endpoint: {url!r} is no URL such as http://127.0.0.1:4318" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, ""),
        ({"SERVD_TRACING_SAMPLING_RATIO": "1"}, "Warning: --trace-ratio has no effect without --trace-endpoint\n"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "Warning: no traces are exported: OTEL_EXPORTER_OTLP_PROTOCOL=grpc: servd exports traces as http/protobuf only "
            "(collectors: port 4318)\n",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_PROPAGATORS": "b3, jaeger"},
            "Warning: OTEL_PROPAGATORS=b3,jaeger: servd reads and passes on traces as tracecontext only\n",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_PROPAGATORS": "b3,tracecontext,baggage"}, ""),
    ],
)
def test_what_has_no_effect_is_told_of(
    variables: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ.update(variables)
    cli_options.look_at_traces()
    assert capsys.readouterr().err == told
