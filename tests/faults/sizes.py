"""Much of everything at once: connections, documents, applications."""

import os
import resource
import socket
import threading
from pathlib import Path
from typing import Any

from servd.ground.clock import SystemClock, block_for
from tests.faults.cell import PUT
from tests.faults.outcome import Outcome
from tests.faults.scenarios import a_stage, under_load
from tests.faults.stage import Stage
from tests.processes import stat_of
from tests.system.running_daemon import a_daemon, eventually, settings_in

CONNECTIONS = 2000
DOCUMENTS = 20
DEPLOYS = 200
APPLICATIONS = 50
UP_WITHIN_S = 300.0
REPLICAS = 500
DEATHS = 5
HANDLED_WITHIN_S = 0.1
IDLE_S = 10.0
MOST_IDLE = {"controller": 3.0, "all": 10.0}
"""Percent of a core while nothing happens."""
_SELDOM_S = 0.5
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


def many_replicas(directory: Path, times: int) -> Outcome:
    """500 replicas of a light application: idle they cost next to nothing, one that dies is replaced at once, and a new
    controller takes them all over.
    """
    clock = SystemClock()
    with a_daemon(settings_in(directory, proxies=2)) as daemon:
        stage = Stage(daemon, directory)
        stage.deploy(replicas=2)
        began = clock.now()
        stage.put(replicas=REPLICAS)
        eventually(stage.is_settled, UP_WITHIN_S, every_s=_SELDOM_S)
        figures = [f"{REPLICAS} replicas up after {clock.now() - began:.1f} s"]
        slow: list[str] = []
        # what came with their start comes to an end
        block_for(IDLE_S)
        before, began = _spent(stage), clock.now()
        block_for(IDLE_S)
        after, span = _spent(stage), clock.now() - began
        shares = {title: 100.0 * (after[title] - before[title]) / span for title in after}
        figures.append("idle, % of a core: " + ", ".join(f"{title} {share:.1f}" for title, share in shares.items()))
        slow += [
            f"idle: {title} {shares[title]:.1f} % of a core, {most} are allowed"
            for title, most in MOST_IDLE.items()
            if shares[title] > most
        ]

        def once(_: int) -> None:
            taken_s = []
            for _ in range(DEATHS):
                taken_s.append(_replaced_after(stage))
                eventually(stage.is_settled, every_s=_SELDOM_S)
            figures.append(f"deaths, until the successor is there: {', '.join(f'{1000 * s:.0f}' for s in taken_s)} ms")
            if sorted(taken_s)[DEATHS // 2] > HANDLED_WITHIN_S:
                slow.append(f"most deaths are not handled within {HANDLED_WITHIN_S} s")
            old = stage.controller_to_kill()
            with stage.recovery():
                began = clock.now()
                stage.kill(old)
                eventually(lambda: stage.says(lambda status: status["controller_info"]["pid"] != old))
                figures.append(f"a new controller answered after {clock.now() - began:.1f} s")
                eventually(stage.is_settled, UP_WITHIN_S, every_s=0.1)
            figures.append(f"CPU of the new controller until all was normal: {_spent(stage)['controller']:.1f} s")

        outcome = under_load(stage, times, once, keep=1, new=1, pause_s=0.05, post_pause_s=0.1)
        outcome.judge(set(stage.begun()))
        outcome.figures += figures
        outcome.slow += slow
        return outcome


def _spent(stage: Stage) -> dict[str, float]:
    """CPU seconds so far of each kind of process, and of all of them together."""
    kinds = {
        title: stage.daemon.pids(title) for title in ("daemon", "controller", "proxy", "fork server", "replica", "")
    }
    return {title or "all": sum(map(_cpu_s, pids)) for title, pids in kinds.items()}


def _cpu_s(pid: int) -> float:
    fields = stat_of(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _replaced_after(stage: Stage) -> float:
    """Kill a replica; seconds until its successor is there."""
    (server,) = stage.daemon.pids("fork server")
    children = Path(f"/proc/{server}/task/{server}/children")
    before = set(children.read_text().split())
    clock = SystemClock()
    began = clock.now()
    stage.kill(int(sorted(before)[len(before) // 2]))
    eventually(lambda: set(children.read_text().split()) - before, every_s=0.002)
    return clock.now() - began
