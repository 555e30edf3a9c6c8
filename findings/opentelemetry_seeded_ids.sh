#!/bin/bash
# Guess, before looking: ids of traces and spans are random whatever the program does with Python's `random`, as those of `uuid.uuid4` are,
# so that model code which seeds it for each request (as helpers for reproducible results do) does no harm.
# Seen (opentelemetry-sdk 1.45.2): the SDK's generator of ids draws from the module `random` itself. Two requests that seed it alike get the
# same trace id and the same span id, and say of these ids that they are random; a collector shows both requests as one trace.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q opentelemetry-sdk==1.45.2
cat > "$directory/ids.py" <<'END'
import importlib.metadata
import random
import uuid

from opentelemetry.sdk.trace import TracerProvider

tracer = TracerProvider().get_tracer("requests")


def request():
    random.seed(42)
    span = tracer.start_span("predict")
    span.end()
    place = span.get_span_context()
    return f"{place.trace_id:032x}", f"{place.span_id:016x}", place.trace_flags.random_trace_id, uuid.uuid4().hex


print("opentelemetry-sdk", importlib.metadata.version("opentelemetry-sdk"))
first, second = request(), request()
for trace_id, span_id, is_said_random, other in (first, second):
    print(f"trace {trace_id}, span {span_id}, said to be random: {is_said_random}; uuid4 {other}")
assert first[:3] == second[:3]
assert first[2] is True
assert first[3] != second[3]
END
"$directory/venv/bin/python" "$directory/ids.py"
