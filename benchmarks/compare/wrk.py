"""Load by wrk, one thread, in a session of its own."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.cases import Case
from benchmarks.compare.running_system import request
from benchmarks.compare.systems import Endpoint

TIMEOUT_S = 20
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadError(Exception):
    """The load did not go as it must."""


@dataclass(frozen=True, slots=True)
class Load:
    """requests: answered, in `seconds`."""

    requests: float
    seconds: float
    p50_ms: float
    p99_ms: float


def is_there() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def parsed(text: str) -> Load:
    """What wrk printed with `--latency`.

    Raises:
        LoadError: an answer was no success, a socket failed, or nothing was answered.
    """
    for line in text.splitlines():
        if "Non-2xx" in line or "Socket errors" in line:
            raise LoadError(" ".join(line.split()))
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", text)
    shares = {found[1]: float(found[2]) * UNITS_MS[found[3]] for found in re.finditer(r"(\d\d)%\s+([\d.]+)(\w+)", text)}
    if total is None or total[1] == "0":
        raise LoadError("no request was answered")
    return Load(int(total[1]), float(total[2]) * UNITS_MS[total[3]] / 1000, shares["50"], shares["99"])


def script(method: str, body: bytes, headers: dict[str, str], body_file: Path) -> str:
    """Lua that has wrk send this request."""
    body_file.write_bytes(body)
    lines = [f'wrk.method = "{method}"', f'local file = io.open("{body_file}", "rb")', 'wrk.body = file:read("*a")']
    lines += ["file:close()", *(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())]
    return "\n".join(lines) + "\n"


def run(case: Case, endpoint: Endpoint, connections: int, seconds: int) -> Load:
    """One run.

    Raises:
        LoadError: see `parsed`.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", f"--timeout={TIMEOUT_S}s"]
    method, body, headers = request(case, endpoint)
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as directory:
        if body is not None:
            path = Path(directory, "request.lua")
            path.write_text(script(method, body, headers, Path(directory, "body")))
            command += ["-s", str(path)]
        limit_s = seconds + TIMEOUT_S + 10
        try:
            done = subprocess.run(
                [*command, endpoint.url], capture_output=True, text=True, timeout=limit_s, start_new_session=True
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"wrk did not end within {limit_s} s") from None
    if done.returncode:
        raise LoadError(done.stderr.strip() or done.stdout.strip())
    return parsed(done.stdout)
