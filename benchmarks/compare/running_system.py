"""A system that runs: started, asked whether it answers, paused, ended."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.cases import BY_NAME, Case
from benchmarks.compare.launcher import GRACE_S
from benchmarks.compare.processes import pause
from benchmarks.compare.systems import Endpoint, Setup, System, environment_of

LAUNCHER = str(Path(__file__).parent / "launcher.py")
START_LIMIT_S = 240.0
ANSWER_LIMIT_S = 60.0
LOG_BYTES = 3000


class SystemFailedError(Exception):
    """It does not start, or does not answer as it must."""


@dataclass(slots=True)
class RunningSystem:
    """launcher: pid above all processes of the system, itself not part of it."""

    system: System
    launcher: int
    endpoints: dict[str, Endpoint]
    log: Path

    def last_words(self) -> str:
        """End of what it printed."""
        return self.log.read_text(errors="replace")[-LOG_BYTES:]


def request(case: Case, endpoint: Endpoint) -> tuple[str, bytes | None, dict[str, str]]:
    """Method, body and headers of the case at this system."""
    body = case.body if endpoint.body is None else endpoint.body
    if case.way == "upload":
        body = bytes(int(case.answer))
    if body is None:
        return "GET", None, {}
    return "POST", body, {"Content-Type": endpoint.content_type or case.content_type}


def ask(case: Case, endpoint: Endpoint) -> str:
    """Send one request; says what is wrong with the answer, "" = nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=ANSWER_LIMIT_S)
    method, body, headers = request(case, endpoint)
    try:
        connection.request(method, endpoint.path, body, headers)
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if response.status != 200:
        return f"status {response.status}: {text[:200]!r}"
    is_right = len(text) >= case.answer if isinstance(case.answer, int) else case.answer in text
    return "" if is_right else f"answered {text[:80]!r}"


@contextmanager
def running(system: System, python: str, cases: set[str]) -> Iterator[RunningSystem]:
    """The system for as long as the block runs, answering all these cases.

    Raises:
        SystemFailedError: it does not come up; the message holds the end of its log.
    """
    # short, as paths of Unix sockets are
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    log = directory / "log"
    setup = system.start(python, directory, cases)
    try:
        with launched(setup, directory, log) as process:
            try:
                _finish_start(setup, process)
            except SystemFailedError as error:
                words = log.read_text(errors="replace")[-LOG_BYTES:]
                raise SystemFailedError(f"{system.name}: {error}\n{words}") from None
            yield RunningSystem(system, process.pid, setup.endpoints, log)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def launched(setup: Setup, directory: Path, log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """The launcher above the system's processes, for as long as the block runs; what they print goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, LAUNCHER, json.dumps(setup.commands)],
            cwd=directory,
            env=environment_of(setup),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _finish_start(setup: Setup, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_LIMIT_S
    run_then(setup, process, deadline)
    for name, endpoint in setup.endpoints.items():
        case = BY_NAME[name]
        if case.way not in ("calls", "websocket"):
            while fault := ask(case, endpoint):
                if fault.startswith("status 500"):
                    raise SystemFailedError(f"{endpoint.url}: {fault}")
                go_on_waiting(process, deadline, f"{endpoint.url}: {fault}")


def run_then(setup: Setup, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Wait for the port, then run the command that is to run then, if there is one. deadline: as `time.monotonic` has it."""
    if setup.then is None:
        return
    while not _listens(setup.opens):
        go_on_waiting(process, deadline, f"nobody listens on port {setup.opens}")
    done = subprocess.run(setup.then, env=environment_of(setup), capture_output=True, text=True)
    if done.returncode:
        raise SystemFailedError(f"{setup.then}:\n{done.stdout}{done.stderr}")


def go_on_waiting(process: "subprocess.Popen[bytes]", deadline: float, fault: str) -> None:
    """A short pause, unless the system has ended or the time is over, for which `fault` is the reason then."""
    if process.poll() is not None:
        raise SystemFailedError("it ended")
    if time.monotonic() > deadline:
        raise SystemFailedError(fault)
    time.sleep(0.01)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(GRACE_S + 10)
    except subprocess.TimeoutExpired:
        # its processes would outlive it: the kernel keeps those that do not die
        pause(process.pid)
        process.kill()
        process.wait()
