"""Much of everything at once: connections, documents, applications."""

import resource
import socket
import threading
from pathlib import Path
from typing import Any

from tests.faults.cell import PUT
from tests.faults.outcome import Outcome
from tests.faults.scenarios import a_stage, under_load
from tests.faults.stage import Stage
from tests.system.running_daemon import eventually

CONNECTIONS = 2000
DOCUMENTS = 20
DEPLOYS = 200
APPLICATIONS = 50
UP_WITHIN_S = 300.0
_FREE_DESCRIPTORS = 200


def idle_connections(directory: Path, times: int) -> Outcome:
    """2,000 clients that say nothing (every second one after a first request): others are served, also by successors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with a_stage(directory, replicas=2, proxies=2) as stage:
        proxies = stage.daemon.pids("proxy")
        before = _descriptors(proxies)

        def once(number: int) -> None:
            idle = [_idle(stage, is_silent=bool(count % 2)) for count in range(CONNECTIONS)]
            stage.deploy(version=number)
            stage.kill_and_replace("replica", stage.idle())
            stage.kill_controller()
            for connection in idle:
                connection.close()
            with stage.recovery():
                eventually(lambda: _descriptors(proxies) < before + _FREE_DESCRIPTORS)

        outcome = under_load(stage, times, once, post_pause_s=0.1)
        outcome.judge(set(stage.begun()))
        if stage.daemon.pids("proxy") != proxies:
            outcome.notes.append("a proxy was replaced")
        return outcome


def _idle(stage: Stage, *, is_silent: bool) -> socket.socket:
    assert stage.daemon.settings.http_port is not None
    connection = socket.create_connection(("127.0.0.1", stage.daemon.settings.http_port), timeout=30.0)
    if not is_silent:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: idle\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    return connection


def _descriptors(pids: list[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def documents_at_once(directory: Path, times: int) -> Outcome:
    """20 clients send a document each in one moment: all are accepted, one after the other, and the last one holds."""
    with a_stage(directory, replicas=2, proxies=2) as stage:
        notes: list[str] = []

        def once(number: int) -> None:
            revision = stage.daemon.status()["revision"]
            answers: list[tuple[int, Any]] = []
            # the same code: only counts and configs differ
            bodies = [_with_colour(stage, DOCUMENTS * number + count) for count in range(DOCUMENTS)]
            clients = [
                threading.Thread(target=lambda body=body: answers.append(stage.daemon.ask("PUT", PUT, body)))
                for body in bodies
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            if refused := [answer for answer in answers if answer[0] != 200]:
                notes.append(f"{len(refused)} of {DOCUMENTS} were refused, as {refused[0]}")
            stage.wait()
            if (count := stage.daemon.status()["revision"] - revision) != DOCUMENTS:
                notes.append(f"{DOCUMENTS} documents made {count} revisions")
            accepted = stage.daemon.ask("GET", "/api/serve/applications/")[1]["applications"]["work"]
            wanted = accepted["deployed_app_config"]["deployments"][0]["user_config"]["colour"]
            if (served := stage.daemon.get()[1].split()[3]) != str(wanted):
                notes.append(f"the last document wants colour {wanted}, served is {served}")

        outcome = under_load(stage, times, once)
        outcome.notes += notes
        return outcome


def _with_colour(stage: Stage, colour: int) -> dict[str, Any]:
    document = stage.document(version=stage.version)
    document["deployments"][0]["user_config"] = {"colour": colour}
    return {"applications": [document]}


def deploys_in_a_row(directory: Path, times: int) -> Outcome:
    """200 documents without a pause, a new version each: nobody waits for one to be carried out before the next comes."""
    with a_stage(directory, replicas=2, proxies=2) as stage:

        def once(number: int) -> None:
            for count in range(1, DEPLOYS + 1):
                stage.put(version=1000 * number + count)
            with stage.recovery():
                stage.wait()

        outcome = under_load(stage, times, once)
        left = len(stage.daemon.pids("replica")), len(stage.daemon.pids("fork server"))
        if left != (2, 1):
            outcome.notes.append(f"strays: {left} replicas and fork servers, wanted (2, 1)")
        if (served := stage.daemon.get()[1].split()[2]) != str(stage.version):
            outcome.notes.append(f"version {stage.version} is wanted, {served} is served")
        return outcome


def many_applications(directory: Path, times: int) -> Outcome:
    """50 further applications come in one document, and go with the next one."""
    with a_stage(directory, replicas=2, proxies=2) as stage:
        names = [f"further{number}" for number in range(APPLICATIONS)]

        def once(_: int) -> None:
            work = stage.document(version=stage.version)
            further = [_further(stage, name) for name in names]
            _accept(stage, [work, *further])
            eventually(lambda: _states(stage) == dict.fromkeys(["work", *names], "RUNNING"), UP_WITHIN_S)
            for name in names:
                assert stage.daemon.get(f"/{name}")[0] == 200
            _accept(stage, [work])
            eventually(lambda: _states(stage) == {"work": "RUNNING"}, UP_WITHIN_S)

        outcome = under_load(stage, times, once)
        left = len(stage.daemon.pids("replica")), len(stage.daemon.pids("fork server"))
        if left != (2, 1):
            outcome.notes.append(f"strays: {left} replicas and fork servers, wanted (2, 1)")
        return outcome


def _further(stage: Stage, name: str) -> dict[str, Any]:
    document = {**stage.document(version=stage.version), "name": name, "route_prefix": f"/{name}"}
    document["deployments"] = [{"name": "Work", "num_replicas": 1}]
    return document


def _accept(stage: Stage, applications: list[dict[str, Any]]) -> None:
    code, text = stage.daemon.ask("PUT", PUT, {"applications": applications})
    assert code == 200, text


def _states(stage: Stage) -> dict[str, str]:
    return {name: app["status"] for name, app in stage.daemon.status()["applications"].items()}
