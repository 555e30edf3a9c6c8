"""The commands that operators use, against a fake control plane behind the real admin server."""

import contextlib
import json
import os
import pty
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from servd.commands.console import without_colours
from servd.commands.service_unit import quoted
from servd.documents.control_plane import ApplicationChange, ChangePlan
from servd.documents.controller_views import ScalingView
from servd.documents.figure_views import DeploymentFigures, ReplicaFigures, RequestFigures
from servd.ground.states import ApplicationStatus, DeployMode, ReplicaState, RevisionOutcome
from servd.observability.error_groups import ErrorGroup, ErrorsReport
from servd.rest.access import AccessRules
from tests.wire.fake_plane import FakePlane, Server, a_revision, an_application, an_instance
from tests.wire.test_commands import Command

ROOT = Path(__file__).parents[2]
FRUIT = ROOT / "examples" / "fruit"
CONFIG = ROOT / "configs" / "fruit.yaml"
NAMES = (
    "start", "stop", "deploy", "run", "config", "status", "shutdown", "delete", "history", "rollback", "diff", "validate",
    "scale", "prune", "logs", "stack", "build", "exec", "version", "schema", "systemd-unit", "upgrade", "errors", "export",
    "top", "grafana", "open", "init", "doctor",
)  # fmt: skip

ME = pwd.getpwuid(os.getuid()).pw_name

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    instance = an_instance(running=True, revision=2, mode=DeployMode.MULTI_APP, applications=(an_application("a"),))
    plane = FakePlane(
        instance, history=(a_revision(1, "a"), replace(a_revision(2, "a", "b"), outcome=RevisionOutcome.FAILED))
    )
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.fixture
def servd(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_every_command_has_one_line_in_the_help(servd: Command) -> None:
    code, out, _ = servd("--help")
    assert code == 0
    lines = dict(re.findall(r"^  ([a-z][a-z-]*)  +(\S.*)$", out, re.MULTILINE))
    assert set(NAMES) == set(lines)
    assert not [line for line in lines.values() if line.endswith("...")]


def test_history_lists_revisions(servd: Command, server: Server) -> None:
    code, out, err = servd("history", "-a", server.url)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["revision", "time", "applications", "outcome", "origin"]
    assert lines[1].startswith("2 *")
    assert re.search(r" a, b +failed +PUT 2$", lines[1])
    assert re.search(r" a +ran +PUT 1$", lines[2])
    assert [item["revision"] for item in yaml.safe_load(servd("history", "--format", "yaml", "-a", server.url)[1])] == [
        2,
        1,
    ]
    assert len(json.loads(servd("history", "--limit", "1", "--format", "json", "-a", server.url)[1])) == 1


def test_errors_are_listed_and_shown(servd: Command, server: Server) -> None:
    assert "No error of any application is known" in servd("errors", "-a", server.url)[1]
    assert "there is no application 'zoo'" in servd("errors", "zoo", "-a", server.url)[2]
    group = ErrorGroup(
        "abc",
        "ValueError",
        "/src/a.py:3 in f",
        "ValueError: no",
        "Traceback\n  no",
        "m",
        "/a",
        2,
        5.0,
        6.0,
        ((6.0, "r-1"),),
    )
    server.plane.book.heard("a", "D", ErrorsReport("a_D#1", (group,)))
    code, out, err = servd("errors", "a/D", "-a", server.url)
    assert (code, err) == (0, "")
    line = out.splitlines()[1]
    assert re.match(r"abc +a/D +2 +\d{4}-.* ValueError: no +/src/a\.py:3 in f +r-1$", line), out
    assert json.loads(servd("errors", "a/E", "--format", "json", "-a", server.url)[1] or "[]") == []
    code, out, err = servd("errors", "show", "abc", "-a", server.url)
    assert (code, err) == (0, "")
    assert out.startswith(
        "error: abc\ndeployment: a/D\nmethod: m\nroute: /a\nplace: /src/a.py:3 in f\ncount: 2\nfirst: "
    )
    assert out.endswith("requests: r-1\n\nTraceback\n  no\n")
    assert "there is no error 'nix'" in servd("errors", "show", "nix", "-a", server.url)[2]
    assert servd("errors", "a", "abc", "-a", server.url)[0] == 2


CALLS = RequestFigures(3, 1, 740, 2, 12.33, (1.2, 4.0, 9.1))


def some_figures() -> dict[str, DeploymentFigures]:
    replicas = {
        "a_D#1": ReplicaFigures(ReplicaState.RUNNING, 12, 75.0, CALLS, 3 * 2**20, 0.25, 31, 4),
        "a_D#2": ReplicaFigures(ReplicaState.RUNNING, 13, 7.0, CALLS, 2**30, 1.0, 31, 4),
        "a_D#3": ReplicaFigures(ReplicaState.STARTING, None, 0.1, RequestFigures()),
    }
    decision = ScalingView(940.0, 1, 3, "mean load 5.00 asks for 3")
    return {"a_D": DeploymentFigures("a", "D", 3, 2, 5, CALLS, 3 * 2**20, 1.25, decision, replicas)}


def test_figures_are_shown_by_top_and_by_a_verbose_status(servd: Command, server: Server) -> None:
    assert "There are no applications" in servd("top", "-a", server.url)[1]
    server.plane.figures.found = some_figures()
    for arguments in (("top",), ("status", "-v"), ("top", "a/D", "--sort", "memory")):
        code, out, err = servd(*arguments, "-a", server.url)
        assert (code, err) == (0, "")
        lines = [line.split() for line in out.splitlines()]
        assert ["a_D", "2/3", "5", "125%", "3M", "3", "1", "12.3", "1.2", "4.0", "9.1", "2"] in lines
        row = ["a_D#1", "RUNNING", "1m", "25%", "3M", "31", "4", "3", "1", "12.3", "1.2", "4.0", "9.1", "2"]
        assert row in lines
        assert "a_D: 1 -> 3 replicas, 1m ago: mean load 5.00 asks for 3" in out
        order = [line[0] for line in lines if line and line[0].startswith("a_D#")]
        assert order == (["a_D#2", "a_D#1", "a_D#3"] if "--sort" in arguments else ["a_D#1", "a_D#2", "a_D#3"])
    assert json.loads(servd("top", "--format", "json", "-a", server.url)[1])["window_s"] == 60
    assert "called 'zoo'" in servd("top", "zoo", "-a", server.url)[2]


@pytest.mark.long
def test_top_goes_on_on_a_terminal_until_ctrl_c(servd: Command, server: Server) -> None:
    server.plane.figures.found = some_figures()
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "servd", "top", "--interval", "0.5", "-a", server.url]
    environment = {**servd.environment, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200", "LINES": "20"}
    with subprocess.Popen(command, stdin=secondary, stdout=secondary, env=environment) as process:
        os.close(secondary)
        shown = ""
        while shown.count("requests/s") < 2:
            shown += os.read(primary, 65536).decode()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):
            while data := os.read(primary, 65536):
                shown += data.decode()
    os.close(primary)
    assert process.returncode == 0
    found = without_colours(shown)
    assert "deployments 1, replicas 2, requests/s 12.3, CPU 125%, memory 3M" in found
    assert re.search(r"a_D#1 +RUNNING +1m +25%", found)


def test_rollback_goes_to_the_last_revision_that_ran(servd: Command, server: Server) -> None:
    # somebody else has sent one meanwhile that does not come up either
    server.plane.history += (replace(a_revision(3, "a"), outcome=RevisionOutcome.UNDECIDED),)
    server.plane.instance = replace(server.plane.instance, revision=3)
    code, out, err = servd("rollback", "-a", server.url)
    assert (code, err) == (0, "")
    assert "Rolled back to revision 1; this is revision 4" in out
    assert [call[:2] for call in server.plane.calls] == [("rollback", 1)]
    code, _, err = servd("rollback", "7", "-a", server.url)
    assert (code, err.splitlines()) == (1, ["Error: the daemon answered 404: there is no revision 7"])
    server.plane.instance = an_instance()
    assert "no earlier revision ran" in servd("rollback", "-a", server.url)[2]
    assert servd("rollback", "0", "-a", server.url)[0] == 2


def test_a_plan_is_shown_and_nothing_sent(servd: Command, server: Server) -> None:
    for arguments in (("deploy", str(CONFIG), "--plan"), ("rollback", "1", "--plan"), ("diff", str(CONFIG))):
        code, out, err = servd(*arguments, "-a", server.url)
        assert (code, err) == (0, ""), arguments
        assert "HTTP option port: 8000 -> 8001" in out
        assert re.search(r"D +1 -> 2 +restarted +ray_actor_options.num_cpus", out)
        assert re.search(r"E +1 +untouched", out)
        assert "b: not built yet" in out
        assert "a: changed /src/app.py\n" in out
    assert server.plane.calls == []
    assert servd("deploy", "m:a", "--plan", "-a", server.url)[0] == 2


def test_diff_compares_with_what_is_stored(servd: Command, server: Server) -> None:
    same = {
        "applications": [
            {"name": "a", "import_path": "m2:a"},
            {"name": "b", "import_path": "m2:a", "route_prefix": "/b"},
        ]
    }
    (servd.folder / "v2.yaml").write_text(yaml.safe_dump(same))
    out = servd("diff", "v2.yaml", "-a", server.url)[1]
    assert [line for line in out.splitlines() if line.startswith(("+", "-"))][2:] == ["+  route_prefix: /b"]
    code, out, _ = servd("diff", "v2.yaml", "--format", "json", "--exit-code", "-a", server.url)
    assert code == 3
    assert json.loads(out)["plan"]["revision"] == 0
    server.plane.change = ChangePlan(0, {}, {"a": ApplicationChange("unchanged", (), "", {})})
    assert servd("diff", "v2.yaml", "--exit-code", "-a", server.url)[0] == 3
    del same["applications"][1]
    server.plane.history = (a_revision(2, "a"),)
    (servd.folder / "v2.yaml").write_text(yaml.safe_dump(same))
    assert servd("diff", "v2.yaml", "--exit-code", "-a", server.url)[0] == 0


def test_scale(servd: Command, server: Server) -> None:
    code, _, err = servd("scale", "a/D", "3", "-a", server.url)
    assert (code, err) == (0, "")
    assert server.plane.calls[0][:4] == ("scale", "a", "D", 3)
    assert servd("scale", "a", "3", "-a", server.url)[0] == 1
    assert servd("scale", "a/X", "3", "-a", server.url)[0] == 1
    assert servd("scale", "a/D", "many", "-a", server.url)[0] == 2


def test_status_for_people_and_programs(servd: Command, server: Server) -> None:
    failed = an_application(
        "b", status=ApplicationStatus.DEPLOY_FAILED, message="Traceback (most recent call last):\n  x\nBoom: no"
    )
    apps = (an_application("a"), failed)
    server.plane.instance = an_instance(running=True, mode=DeployMode.MULTI_APP, applications=apps)
    code, out, err = servd("status", "--format", "table", "-a", server.url)
    assert (code, err) == (0, "")
    assert re.search(r"^a +/ +RUNNING +\d+d$", out, re.MULTILINE)
    assert re.search(r"^ +D +HEALTHY +\d+d +1/1$", out, re.MULTILINE)
    assert re.search(r"^b +/ +DEPLOY_FAILED .* Boom: no$", out, re.MULTILINE)
    found = json.loads(servd("status", "--format", "json", "-a", server.url)[1])
    assert [item["app_status"]["status"] for item in found] == ["RUNNING", "DEPLOY_FAILED"]
    assert json.loads(servd("status", "-n", "a", "--format", "json", "-a", server.url)[1])["name"] == "a"
    assert servd("status", "--format", "xml", "-a", server.url)[0] == 2


def test_status_on_a_terminal_is_a_table(servd: Command, server: Server) -> None:
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "servd.cli", "status", "-a", server.url]
    environment = {**servd.environment, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=secondary, env=environment) as process:
        os.close(secondary)
        out = b""
        with contextlib.suppress(OSError):
            while data := os.read(primary, 4096):
                out += data
    os.close(primary)
    assert process.returncode == 0
    shown = without_colours(out.decode())
    assert re.search(r"application +deployment +route +status +age +replicas +reason", shown)
    assert re.search(r"D +HEALTHY .* 1/1", shown)


@pytest.mark.parametrize("target", ["a", "a/D", "a_D", "a_D#aBcDeF", "12"])
def test_stacks_of_what_a_target_means(servd: Command, server: Server, target: str) -> None:
    code, out, err = servd("stack", target, "-a", server.url)
    assert (code, err) == (0, "")
    assert out == "=== replica a_D#aBcDeF, stacks of a_D#aBcDeF\n"


def test_a_target_without_replicas(servd: Command, server: Server) -> None:
    code, _, err = servd("stack", "nobody", "-a", server.url)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "'nobody'" in err


def test_validate_needs_no_daemon(servd: Command) -> None:
    code, out, err = servd("validate", str(CONFIG))
    assert (code, err) == (0, "")
    assert "valid ServeApplicationSchema" in out
    (servd.folder / "v.yaml").write_text(
        "applications:\n- import_path: m:a\n  runtime_env: {working_dir: nowhere}\n  deployments:\n"
        "  - name: D\n    num_replica: 2\n"
    )
    code, _, err = servd("validate", "v.yaml")
    assert code == 1
    assert "v.yaml:6:5: applications.0.deployments.0.num_replica: unknown key, did you mean 'num_replicas'?" in err
    (servd.folder / "v.yaml").write_text("import_path: m:a\nruntime_env: {working_dir: nowhere, env_vars: {A: 1}}\n")
    assert "env_vars.A" in servd("validate", "v.yaml")[2]
    (servd.folder / "v.yaml").write_text("import_path: m:a\nruntime_env: {working_dir: nowhere}\n")
    assert f"there is no {servd.folder}/nowhere" in servd("validate", "v.yaml")[2]
    assert servd("validate", "missing.yaml")[0] == 1


def test_open_prints_where_the_page_is(servd: Command, server: Server) -> None:
    assert servd("open", "-a", server.url, DISPLAY="", WAYLAND_DISPLAY="")[:2] == (0, f"{server.url}/\n")
    unix = ("open", "--no-browser", "-a", f"unix://{server.unix_path}")
    code, _, err = servd(*unix)
    assert (code, "without a live page" in err) == (1, True)
    server.plane.instance = replace(server.plane.instance, page_url="http://127.0.0.1:52365/")
    assert servd(*unix)[:2] == (0, "http://127.0.0.1:52365/\n")


def test_logs_of_a_directory(servd: Command, server: Server) -> None:
    logs = servd.folder / "state" / "logs"
    (logs / "serve").mkdir(parents=True)
    (logs / "serve" / "controller_1.log").write_text("one\ntwo\n")
    (logs / "serve" / "deployment_a_D_a_D#aBcDeF.log").write_text("three\n")
    (logs / "serve" / "deployment_gone_D_gone_D#aBcDeF.log").write_text("four\n")
    (logs / "daemon.log").write_text("five\n")
    given = ("--state-dir", str(servd.folder / "state"))
    server.plane.instance = replace(server.plane.instance, log_dir=str(logs))
    assert servd("logs", "controller", "--lines", "1", SERVD_ADDRESS=server.url)[1] == "two\n"
    for target in ("a", "a/D", "a_D", "a_D#aBcDeF"):
        assert servd("logs", target, SERVD_ADDRESS=server.url)[1] == "three\n"
    assert servd("logs", "gone/D", *given, SERVD_ADDRESS="http://127.0.0.1:1")[1] == "four\n"
    assert "daemon: five\n" in servd("logs", *given, SERVD_ADDRESS="http://127.0.0.1:1")[1]
    assert servd("logs", "nobody", *given, SERVD_ADDRESS=server.url)[0] == 1
    assert servd("logs", "--state-dir", "nowhere", SERVD_ADDRESS="http://127.0.0.1:1")[0] == 1


def test_logs_are_shown_while_no_controller_can_be_started(servd: Command) -> None:
    logs = servd.folder / "state" / "logs" / "serve"
    logs.mkdir(parents=True)
    (logs / "controller_1.log").write_text("why\n")
    said = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def stand_in() -> None:
            guest = listener.accept()[0]
            with guest:
                guest.recv(65536)
                guest.sendall(said)

        thread = threading.Thread(target=stand_in)
        thread.start()
        code, out, err = servd("logs", "controller", SERVD_ADDRESS=f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert (code, out, err) == (0, "why\n", "")


def test_logs_follow_what_is_added(servd: Command) -> None:
    logs = servd.folder / "state" / "logs" / "serve"
    logs.mkdir(parents=True)
    path = logs / "controller_1.log"
    path.write_text("one\n")
    with subprocess.Popen(
        [sys.executable, "-m", "servd.cli", "logs", "-f", "controller"],
        stdout=subprocess.PIPE,
        text=True,
        env={**servd.environment, "PYTHONPATH": str(ROOT), "SERVD_ADDRESS": "http://127.0.0.1:1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        with path.open("a") as file:
            file.write("two\n")
        assert process.stdout.readline() == "two\n"
        path.rename(logs / "controller_1.log.1")
        path.write_text("three\n")
        assert process.stdout.readline() == "three\n"
        process.send_signal(2)
        assert process.wait(10) == 0


def test_build_prints_what_deploy_takes(servd: Command) -> None:
    code, out, err = servd("build", "fruit.deployment_graph", "-d", str(FRUIT))
    assert (code, err) == (0, "")
    assert out.startswith("# This file was generated using the `servd build` command on servd v")
    body = out.partition("\n")[2]
    assert body == (
        f"\nimport_path: fruit.deployment_graph\n\nruntime_env:\n\n  working_dir: {os.path.relpath(FRUIT, servd.folder)}\n\n"
        "deployments:\n\n"
        "- name: MangoStand\n  user_config:\n    price: 3\n\n- name: OrangeStand\n  user_config:\n    price: 2\n\n"
        "- name: PearStand\n  user_config:\n    price: 4\n\n- name: FruitMarket\n  num_replicas: 2\n\n"
        "- name: DAGDriver\n  route_prefix: /\n"
    )
    (servd.folder / "built.yaml").write_text(out)
    assert servd("validate", "built.yaml")[0] == 0


def test_build_of_several_applications(servd: Command) -> None:
    (servd.folder / "apps.py").write_text(
        "from servd import deployment\n"
        "def builder(args): return A.bind()\n"
        "@deployment(route_prefix='/a', ray_actor_options={'num_cpus': 0.5, 'runtime_env': {'env_vars': {'A_b': '1'}}})\n"
        "def A(request): return 1\n"
        "@deployment(route_prefix='/b', user_config={'k_k': 1}, max_concurrent_queries=5, num_replicas=2)\n"
        "class B: pass\n"
        "a, b = A.bind(), B.bind()\n"
        "c, d = (B.options(name=name, route_prefix=None).bind() for name in 'cd')\n"
        "taken = B.options(name='T', route_prefix='/app2').bind()\n"
        "again = B.options(name='C', route_prefix='/a').bind()\n"
    )
    code, _, err = servd("build", "apps:a", "apps:b", "-m", "-o", "out.yaml")
    assert code == 0
    assert "names" in err
    text = (servd.folder / "out.yaml").read_text()
    assert text.endswith("    max_concurrent_queries: 5\n    user_config:\n      k_k: 1\n")
    document = yaml.safe_load(text)
    assert list(document) == ["applications"]
    assert servd("build", "apps:a", "apps:b", "-o", "same.yaml")[::2] == (0, err)
    assert (servd.folder / "same.yaml").read_text() == text
    assert [(app["name"], app["route_prefix"]) for app in document["applications"]] == [("app1", "/a"), ("app2", "/b")]
    assert servd("validate", "out.yaml")[0] == 0
    found = yaml.safe_load(servd("build", "apps:a", "-k")[1])
    assert found["importPath"] == "apps:a"
    assert found["runtimeEnv"] == "{}"
    assert (found["host"], found["port"]) == ("127.0.0.1", 8000)
    options = found["deployments"][0]["rayActorOptions"]
    assert options["numCpus"] == 0.5
    assert json.loads(options["runtimeEnv"]) == {"env_vars": {"A_b": "1"}}
    assert servd("build", "apps:c", "apps:a", "apps:d", "-o", "roots.yaml")[0] == 0
    document = yaml.safe_load((servd.folder / "roots.yaml").read_text())
    assert [app["route_prefix"] for app in document["applications"]] == ["/app1", "/a", "/app3"]
    assert servd("validate", "roots.yaml")[0] == 0
    document = yaml.safe_load(servd("build", "apps:c", "apps:a")[1])
    assert [app["route_prefix"] for app in document["applications"]] == ["/", "/a"]
    refused = [
        (["apps:c", "apps:d", "-m"], 'apps:c and apps:d have the same route_prefix "/"'),
        (["apps:c", "apps:d", "apps:taken"], 'apps:d and apps:taken have the same route_prefix "/app2"'),
        (["apps:a", "apps:again"], 'apps:a and apps:again have the same route_prefix "/a"'),
        (["apps:a", "apps:b", "-k"], "--kubernetes_format"),
        (["apps:a", "-m", "-k"], "--kubernetes_format"),
        (["apps:a", "apps:a", "-m"], '"/a"'),
        (["apps:a", "apps:again", "-m"], 'apps:a and apps:again have the same route_prefix "/a"'),
        (["apps:builder"], "TypeError"),
        (["apps:A"], "TypeError"),
        (["apps:nothing"], "AttributeError"),
        (["nothing:a"], "ModuleNotFoundError"),
        (["apps"], "module:attribute"),
    ]
    for arguments, fragment in refused:
        code, out, err = servd("build", *arguments)
        assert (code, out) == (1, ""), arguments
        assert fragment in err
    assert "Traceback" in servd("--debug", "build", "nothing:a")[2]


def test_exec_gives_ray_its_alias(servd: Command) -> None:
    program = "import sys, ray; from ray import serve; import ray.serve.handle; print(serve.__name__); sys.exit(7)"
    assert servd("exec", sys.executable, "-W", "error", "-c", program)[:2] == (7, "servd\n")
    code, _, err = servd("exec", "no-such-program-here")
    assert (code, len(err.splitlines())) == (127, 1)


def test_version_and_schema(servd: Command) -> None:
    assert re.fullmatch(r"servd \d+\.\d+\.\d+\S*\n", servd("version")[1])
    schema = json.loads(servd("schema")[1])
    assert schema["title"] == "ServeDeploySchema"
    assert "max_ongoing_requests" in schema["$defs"]["DeploymentSchema"]["properties"]
    assert json.loads(servd("schema", "--single-app")[1])["title"] == "ServeApplicationSchema"


def test_a_unit_for_systemd(servd: Command) -> None:
    code, out, err = servd("systemd-unit", "--state-dir", "/srv/a b", "--user", ME, "--", "--http-port", "80")
    assert (code, err) == (0, "")
    assert "Type=notify\n" in out
    assert f"User={ME}\n" in out
    assert re.search(r'^ExecStart=.* start --state-dir "/srv/a b" --http-port 80$', out, re.MULTILINE)
    assert "ExecReload=" in out
    assert "OOMPolicy=continue\n" in out, "systemd would stop the whole service when the kernel kills one replica"
    assert int(re.search(r"TimeoutStopSec=(\d+)", out)[1]) > 60  # type: ignore[index]
    assert "WantedBy=default.target" in servd("systemd-unit")[1]


def test_a_unit_for_another_user_has_that_users_state(servd: Command) -> None:
    mine = {"SERVD_STATE_DIR": "/mine", "XDG_STATE_HOME": "/mine-too"}
    other = next(account for account in pwd.getpwall() if account.pw_uid not in (0, os.getuid()))
    out = servd("systemd-unit", "--user", other.pw_name, **mine)[1]
    assert f"start --state-dir {quoted(other.pw_dir + '/.local/state/servd')}\n" in out
    assert "--state-dir /given\n" in servd("systemd-unit", "--user", other.pw_name, "--state-dir", "/given")[1]
    assert "--state-dir /mine\n" in servd("systemd-unit", **mine)[1]


@pytest.mark.parametrize("state_dir", [(), ("--state-dir", "/given")], ids=["", "named directory"])
@pytest.mark.parametrize("name", ["no-such-user", ""])
def test_a_unit_for_an_unknown_user_is_refused(servd: Command, name: str, state_dir: tuple[str, ...]) -> None:
    code, out, err = servd("systemd-unit", "--user", name, *state_dir)
    assert (code, out) == (1, "")
    assert f"there is no user {name!r} on this host" in err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's own checker, systemd-analyze")
def test_systemd_itself_finds_no_fault_in_the_unit(servd: Command) -> None:
    odd = ("--state-dir", "/srv/a b%c", "--", "--http-port", "80", "--admin-allowed-host", "a$b")
    for name, options in {"user": odd, "system": ("--user", "root", *odd)}.items():
        unit = servd.folder / f"servd-{name}.service"
        unit.write_text(servd("systemd-unit", *options)[1])
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(servd: Command, shell: str) -> None:
    code, out, _ = servd(
        _SERVD_COMPLETE=f"complete_{shell}",
        _TYPER_COMPLETE_ARGS="servd roll",
        COMP_WORDS="servd roll",
        COMP_CWORD="1",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert code == 0
    assert "rollback" in out


def test_the_help_is_fast(servd: Command) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "servd.cli", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    # these cost more than all the rest together
    assert not loaded & {"pydantic", "yaml", "asyncio", "rich", "ssl", "starlette", "http.client", "zmq"}


def test_prune_says_what_goes(servd: Command, server: Server) -> None:
    code, out, err = servd("prune", "-a", server.url)
    assert (code, err) == (0, "")
    assert "Removed 1 of the stored snapshots and shipped applications, 3.0 MiB." in out
    code, out, _ = servd("prune", "--keep", "3", "--plan", "-a", server.url)
    assert out.splitlines()[-2:] == ["keep 3", "dry run"]
    assert servd("prune", "--keep", "-1", "-a", server.url)[0] == 2
