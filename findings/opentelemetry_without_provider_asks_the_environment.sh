#!/bin/bash
# Guess, before looking: as long as no provider is set up, OpenTelemetry's API gives its proxies from a variable, and a FastAPI
# application, which asks for them, sees in passing that nobody listens.
# Seen (opentelemetry-api 1.45.2, fastapi 0.165.0): `get_tracer_provider`, `get_meter_provider` and `get_logger_provider` look for
# `OTEL_PYTHON_*_PROVIDER` in the environment at each call until a provider is set up. FastAPI asks all three in each request: a failed
# look into `os.environ` each, which encodes the name and raises KeyError inside, and 2 to 4 us in all.
# With one provider set up for each kind there is no such look any more.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q fastapi==0.165.0 opentelemetry-api==1.45.2 2>/dev/null
cat > "$directory/looks.py" <<'END'
import asyncio
import collections
import os

import fastapi
from opentelemetry import _logs, metrics, trace

SCOPE = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http"}
looks = collections.Counter()
get = os._Environ.__getitem__


def counted(environ, name):
    if name.startswith("OTEL_"):
        looks[name] += 1
    return get(environ, name)


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


async def looks_of_a_request(app):
    looks.clear()
    await app(dict(SCOPE), receive, send)
    return dict(looks)


async def main():
    app = fastapi.FastAPI()

    @app.get("/")
    async def root():
        return "hello"

    await looks_of_a_request(app)
    os._Environ.__getitem__ = counted
    print("fastapi", fastapi.__version__)
    without = await looks_of_a_request(app)
    print("without a provider:", without)
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    metrics.set_meter_provider(metrics.NoOpMeterProvider())
    _logs.set_logger_provider(_logs.NoOpLoggerProvider())
    after = await looks_of_a_request(app)
    print("with one of each kind:", after)
    assert sorted(without) == [f"OTEL_PYTHON_{kind}_PROVIDER" for kind in ("LOGGER", "METER", "TRACER")]
    assert all(count >= 1 for count in without.values())
    assert not after


asyncio.run(main())
END
"$directory/venv/bin/python" "$directory/looks.py"
