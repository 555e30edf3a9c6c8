"""The commands against a fake control plane behind the real admin server: output, requests, exit codes."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from servd.commands.verbs import status_document
from servd.daemon.admin_client import AdminClient
from servd.daemon.presence import LOOKS, Presence, StoppedError
from servd.documents.control_plane import DeadReplicaView, RevisionView
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError
from servd.ground.states import ApplicationStatus, DeployMode
from servd.rest.access import AccessRules
from tests.warm_command import servd_command
from tests.wire.fake_plane import FakePlane, Server, an_application, an_instance

FRUIT = Path(__file__).parents[2] / "configs" / "fruit.yaml"
V2_DOCUMENT = """
applications:
- name: a
  import_path: m:a
  runtime_env: {working_dir: app}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


class Command:
    """Runs `servd ...` in its own folder, with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS", "PYTHONPATH", "SERVD_STATE_DIR")
        self.environment = {key: value for key, value in os.environ.items() if key not in names}
        self.environment["SERVD_STATE_DIR"] = str(folder / "state")

    def __call__(self, *arguments: str, text: str = "", **environment: str) -> tuple[int, str, str]:
        variables = {**self.environment, "PYTHONPATH": str(FRUIT.parents[1]), **environment}
        return servd_command(arguments, self.folder, variables, text)


@pytest.fixture
def servd(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--help"], 0, "shutdown"),
        (["--version"], 0, "servd "),
        ([], 2, "Usage"),
        (["fly"], 2, "No such command"),
        (["deploy"], 2, "Missing argument"),
        (["status", "--colour"], 2, "No such option"),
        (["status", "-a", "localhost:1"], 1, "Error: address 'localhost:1' must have the form"),
        (["status", "-a", "ftp://localhost"], 1, "must have the form"),
        (["status", "-a", "http://127.0.0.1:1/"], 1, "failed to connect to servd at http://127.0.0.1:1:"),
        (["deploy", "nothing.yaml"], 1, "nothing.yaml does not exist"),
        (["start", "--http-location", "Moon"], 2, "Moon"),
        (["start", "--http-location", "FixedNumber"], 1, "FixedNumber"),
        (["start", "--proxy-location", "FixedNumber"], 1, "FixedNumber"),
        (["start", "--admin-host", "0.0.0.0"], 1, "--admin-token-file"),
        (["start", "--admin-tls-cert", "a.pem"], 1, "--admin-tls-cert and --admin-tls-key belong together"),
        (["start", "--http-tls-cert", "a.pem", "--http-tls-key", "b.pem"], 1, "cannot use --http-tls-cert"),
        (["run", "m:a", "--gradio"], 2, "Gradio"),
        (["run", "m:a", "--reload", "--non-blocking"], 2, "--blocking"),
        (["stop"], 0, "No daemon runs on "),
    ],
)
def test_usage_and_plain_errors(servd: Command, arguments: list[str], code: int, fragment: str) -> None:
    found, out, err = servd(*arguments)
    assert found == code
    assert fragment in out + err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2 or code == 2


@pytest.mark.slow
def test_deploy_sends_the_document_with_absolute_paths(servd: Command, server: Server) -> None:
    (servd.folder / "conf").mkdir()
    (servd.folder / "conf" / "v2.yaml").write_text(V2_DOCUMENT)
    code, out, err = servd("deploy", "conf/v2.yaml", "-a", server.url + "/")
    assert (code, err) == (0, "")
    assert "SUCC" in out
    goal = server.plane.calls[0][1]
    assert goal.mode == DeployMode.MULTI_APP
    assert goal.applications[0].runtime_env == {"working_dir": f"file://{servd.folder}/conf/app"}
    assert goal.config_file == f"{servd.folder}/conf/v2.yaml"


@pytest.mark.slow
def test_addresses_come_from_the_environment_too(servd: Command, server: Server) -> None:
    assert servd("deploy", str(FRUIT), SERVD_ADDRESS=server.url, RAY_AGENT_ADDRESS="http://127.0.0.1:1")[0] == 0
    assert servd("deploy", str(FRUIT), RAY_AGENT_ADDRESS=f"unix://{server.unix_path}")[0] == 0
    assert [call[1].mode for call in server.plane.calls] == [DeployMode.SINGLE_APP] * 2


@pytest.mark.slow
def test_a_wrong_document_is_refused_before_it_is_sent(servd: Command, server: Server) -> None:
    (servd.folder / "v2.yaml").write_text("applications:\n- import_path: m\n  colour: red\n")
    code, out, err = servd("deploy", "v2.yaml", "-a", server.url)
    assert (code, out) == (1, "")
    assert "ServeDeploySchema" in err
    assert "v2.yaml:2:3: applications.0.import_path" in err
    assert "v2.yaml:3:3: applications.0.colour" in err
    (servd.folder / "v1.yaml").write_text("colour: red\n")
    assert "ServeApplicationSchema" in servd("deploy", "v1.yaml", "-a", server.url)[2]
    assert server.plane.calls == []


@pytest.mark.slow
def test_what_the_daemon_refuses_is_shown(servd: Command, server: Server) -> None:
    server.plane.error = RuntimeError("the disk is on fire")
    code, _, err = servd("deploy", str(FRUIT), "-a", server.url)
    assert code == 1
    assert "500" in err
    assert "the disk is on fire" in err


@pytest.mark.slow
def test_wait_shows_progress_until_running(servd: Command, server: Server) -> None:
    deploying = an_application(status=ApplicationStatus.DEPLOYING, deployments=())
    server.plane.instance = an_instance(running=True, applications=(deploying,))
    server.plane.next_views = [an_instance(running=True, applications=(an_application(),))]
    code, out, err = servd("deploy", str(FRUIT), "--wait", "-a", server.url)
    assert (code, err) == (0, "")
    assert "default: DEPLOYING" in out
    assert "default/D: HEALTHY 1/1 replicas" in out
    assert "Running: default." in out


@pytest.mark.slow
def test_wait_fails_with_the_reason(servd: Command, server: Server) -> None:
    failed = an_application(status=ApplicationStatus.DEPLOY_FAILED, message="no module named mango")
    server.plane.instance = an_instance(running=True, applications=(failed,))
    code, _, err = servd("deploy", str(FRUIT), "--wait", "-a", server.url)
    assert code == 1
    assert "no module named mango" in err
    (servd.folder / "three.yaml").write_text(
        "applications:\n" + "".join(f"- {{name: {x}, route_prefix: /{x}, import_path: 'm:{x}'}}\n" for x in "abc")
    )
    other = an_application("c", status=ApplicationStatus.DEPLOY_FAILED, message="no module named kiwi")
    first = an_application("a", status=ApplicationStatus.DEPLOY_FAILED, message="no module named mango")
    late = an_application("b", status=ApplicationStatus.DEPLOYING)
    server.plane.instance = an_instance(running=True, applications=(first, late, other))
    code, out, err = servd("deploy", "three.yaml", "--timeout", "0.2", "-a", server.url)
    assert (code, "Running" in out) == (1, False)
    assert "'a' failed to deploy: no module named mango\napplication 'c' failed to deploy: no module named kiwi" in err
    assert "not running after 0.2 s: b" in err
    slow = an_application(status=ApplicationStatus.DEPLOYING)
    server.plane.instance = an_instance(running=True, applications=(slow,))
    code, _, err = servd("deploy", str(FRUIT), "--timeout", "0.2", "-a", server.url)
    assert code == 1
    assert "not running after 0.2 s: default" in err


@pytest.mark.slow
def test_an_import_path_joins_the_other_applications(servd: Command, server: Server) -> None:
    arguments = ["x=1", "y=", "--name", "n", "--route-prefix", "/p", "--app-dir", "src"]
    code, _, err = servd("deploy", "m:a", *arguments, "-a", server.url, PYTHONPATH=f"{FRUIT.parents[1]}:/lib")
    assert (code, err) == (0, "")
    verb, application, _, _ = server.plane.calls[0]
    assert (verb, application.name, application.import_path) == ("put_application", "n", "m:a")
    assert application.args == {"x": "1", "y": ""}
    assert application.route_prefix == "/p"
    assert application.runtime_env == {"working_dir": f"file://{servd.folder}/src"}
    assert application.python_path == f"{FRUIT.parents[1]}:/lib"
    code, _, err = servd("deploy", "m:a", "x=1=2", "-a", server.url)
    assert code == 1
    assert "'x=1=2'" in err


@pytest.mark.slow
def test_an_import_path_is_deployed_in_a_runtime_environment(servd: Command, server: Server) -> None:
    (Path(servd.folder) / "env.yaml").write_text("working_dir: code\nenv_vars: {A: b}\n")
    cases = [
        (["--runtime-env", "env.yaml"], {"working_dir": f"file://{servd.folder}/code", "env_vars": {"A": "b"}}),
        (
            ["--runtime-env-json", '{"env_vars": {"A": "c"}}'],
            {"working_dir": f"file://{servd.folder}", "env_vars": {"A": "c"}},
        ),
        (["--working-dir", "other"], {"working_dir": f"file://{servd.folder}/other"}),
    ]
    for arguments, env in cases:
        assert servd("deploy", "m:a", *arguments, "-a", server.url)[0] == 0
        assert server.plane.calls[-1][1].runtime_env == env
    code, _, err = servd("deploy", "m:a", *cases[0][0], *cases[1][0], "-a", server.url)
    assert (code, "not both" in err) == (1, True)
    code, _, err = servd("deploy", str(FRUIT), "--working-dir", "other", "-a", server.url)
    assert (code, "no effect with a config file" in err) == (0, True)


@pytest.mark.slow
def test_config_prints_what_is_stored(servd: Command, server: Server) -> None:
    empty = "import_path: ''\nruntime_env: {}\ndeployments: []\n"
    assert servd("config", "-a", server.url) == (0, empty, "")
    server.plane.instance = an_instance(running=True, mode=DeployMode.SINGLE_APP, applications=(an_application(),))
    assert servd("config", "-a", server.url) == (0, "import_path: m:a\n", "")
    assert servd("config", "-n", "default", "-a", server.url)[0] == 1
    apps = (an_application("a"), an_application("p", config=None), an_application("b"))
    server.plane.instance = an_instance(running=True, mode=DeployMode.MULTI_APP, applications=apps)
    assert servd("config", "-a", server.url) == (0, "import_path: m:a\n\n---\n\nimport_path: m:a\n", "")
    assert servd("config", "-n", "b", "-a", server.url) == (0, "import_path: m:a\n", "")
    assert servd("config", "-n", "p", "-a", server.url) == (0, empty, "")
    assert servd("config", "-n", "nobody", "-a", server.url) == (0, empty, "")


@pytest.mark.slow
def test_status_prints_yaml_documents(servd: Command, server: Server) -> None:
    code, out, _ = servd("status", "-a", server.url)
    assert code == 0
    assert "no applications" in out
    message = "\x1b[31mline 1\x1b[0m\nline 2"
    apps = (an_application("a", message=message), an_application("b"))
    server.plane.instance = an_instance(running=True, mode=DeployMode.MULTI_APP, applications=apps)
    code, out, _ = servd("status", "-a", server.url)
    first, second = out.split("\n\n---\n\n")
    assert yaml.safe_load(second) == {
        "name": "b",
        "app_status": {"status": "RUNNING", "message": "", "deployment_timestamp": 1.25},
        "deployment_statuses": [{"name": "b_D", "status": "HEALTHY", "message": ""}],
    }
    assert yaml.safe_load(first)["app_status"]["message"].strip() == "line 1\nline 2"
    assert "message: |" in first
    code, out, err = servd("status", "-n", "nobody", "-a", server.url)
    assert (code, out) == (1, "")
    assert "'nobody'" in err
    server.plane.instance = replace(server.plane.instance, mode=DeployMode.SINGLE_APP, applications=(an_application(),))
    out = servd("status", "-a", server.url)[1]
    assert yaml.safe_load(out)["deployment_statuses"][0]["name"] == "D"
    head, _, deployment = servd("status", "-v", "-a", server.url)[1].splitlines()
    assert head.split()[-2:] == ["start", "reason"]
    assert deployment.split()[-2:] == ["1/1", "fork"]


@pytest.mark.slow
def test_status_tells_the_post_mortem_of_crashed_replicas_only(servd: Command, server: Server) -> None:
    app = an_application("a")
    replaced = DeadReplicaView("a_D#planned", 7, 0, 60.0, "replaced")
    crashed = DeadReplicaView("a_D#crashed", 8, -11, 12.34, "exited with signal 11", 2, ("one", "two"))
    deployment = replace(app.deployments[0], recent_dead=(replaced, crashed))
    apps = (replace(app, deployments=(deployment,)),)
    server.plane.instance = an_instance(running=True, mode=DeployMode.MULTI_APP, applications=apps)
    code, out, _ = servd("status", "-a", server.url)
    assert code == 0
    (shown,) = yaml.safe_load(out)["deployment_statuses"]
    assert shown["recent_dead_replicas"] == [
        {
            "replica_id": "a_D#crashed",
            "signal": 11,
            "age_s": 12.3,
            "open_requests": 2,
            "reason": "exited with signal 11",
            "last_log_lines": "one\ntwo",
        }
    ]


def test_one_traceback_is_told_once() -> None:
    trace = 'Traceback (most recent call last):\n  File "m.py", line 1, in f\nValueError: x'
    dead = {"replica_id": "a_D#1", "signal": None, "exit_code": 1, "age_s": 1.0, "open_requests": 0, "reason": trace}
    lines = f"ERROR start_failed\n{trace}".splitlines()
    app = {
        "name": "a",
        "status": "RUNNING",
        "message": "",
        "last_deployed_time_s": 1.0,
        "deployments": {"a_D": {"name": "a_D", "status": "UPDATING", "message": ""}},
    }
    crashes = {"a_D": [{**dead, "log_lines": lines}, {**dead, "replica_id": "a_D#2", "log_lines": lines}]}
    (shown,) = status_document(app, crashes, bare_names=False)["deployment_statuses"]
    assert [item["reason"] for item in shown["recent_dead_replicas"]] == [trace, "(as above)"]
    assert {item["last_log_lines"] for item in shown["recent_dead_replicas"]} == {"ERROR start_failed\n(as above)"}
    app["deployments"]["a_D"]["message"] = f"failed to start: {trace}"  # type: ignore[index]
    (shown,) = status_document(app, crashes, bare_names=False)["deployment_statuses"]
    assert {item["reason"] for item in shown["recent_dead_replicas"]} == {"(as above)"}


@pytest.mark.slow
def test_an_interrupt_while_the_command_loads_ends_it_without_a_word(servd: Command) -> None:
    (servd.folder / "typer.py").write_text(
        "import os, signal, threading\nos.kill(os.getpid(), signal.SIGINT)\nthreading.Event().wait()\n"
    )
    path = f"{servd.folder}:{FRUIT.parents[1]}"
    done = subprocess.run(
        [sys.executable, "-m", "servd", "status"],
        capture_output=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.slow
def test_shutdown_asks_first(servd: Command, server: Server) -> None:
    for answer in ("", "n\n"):
        code, out, err = servd("shutdown", "-a", server.url, text=answer)
        assert code == 1
        assert server.url in out
        assert "Aborted" in err
    assert server.plane.calls == []
    assert servd("shutdown", "-a", server.url, text="y\n")[0] == 0
    assert servd("shutdown", "-y", "-a", server.url)[0] == 0
    assert [call[0] for call in server.plane.calls] == ["delete", "delete"]


@pytest.mark.slow
def test_run_of_a_document_tells_where_its_applications_are(servd: Command, server: Server) -> None:
    (servd.folder / "v2.json").write_text(json.dumps(yaml.safe_load(V2_DOCUMENT)))
    server.plane.instance = an_instance(running=True, applications=(an_application("a", route_prefix="/a"),))
    code, out, err = servd("run", "v2.json", "--non-blocking", "--port", "8123", "-a", server.url)
    assert (code, err) == (0, "")
    assert "v2.json" in out.splitlines()[0]
    goal = server.plane.calls[0][1]
    assert (goal.http.host, goal.http.port) == (None, 8123)
    # nothing is glued to a URL: terminals open what they take for it
    assert "Deployed application 'a' successfully: http://127.0.0.1:8000/a" in [
        line.partition(" -- ")[2] for line in out.splitlines()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("is_other", [False, True])
def test_wait_tells_that_another_took_the_name(servd: Command, server: Server, is_other: bool) -> None:
    later = {"import_path": "m:other" if is_other else "m:a"}
    both = [{"default": {"import_path": "m:a"}}, {"default": later, "b": {"import_path": "m:b"}}]
    server.plane.history = tuple(
        RevisionView(number, 5.0, "cli", True, DeployMode.MULTI_APP, HttpWish(), applications)  # type: ignore[arg-type]
        for number, applications in enumerate(both, 1)
    )
    deploying = an_application(status=ApplicationStatus.DEPLOYING, deployments=())
    server.plane.instance = an_instance(running=True, applications=(deploying,))
    there = an_application(status=ApplicationStatus.DEPLOYING if is_other else ApplicationStatus.RUNNING)
    server.plane.next_views = [an_instance(running=True, applications=(there,), revision=2)]
    code, _, err = servd("deploy", str(FRUIT), "--wait", "-a", server.url)
    assert code == is_other
    text = "Error: application 'default' was deployed anew meanwhile: revision 2 is in force, not 1 of this deploy"
    assert err.startswith(text) if is_other else err == ""


@pytest.mark.slow
@pytest.mark.parametrize("time_s", [4.0, 6.0])
def test_an_import_path_is_told_from_another_by_its_time(servd: Command, server: Server, time_s: float) -> None:
    server.plane.history = tuple(
        RevisionView(number, 5.0, "cli", True, DeployMode.UNSET, HttpWish(), {"default": None}) for number in (1, 2)
    )
    server.plane.instance = an_instance(running=True, applications=(an_application(),))
    put = server.plane.put_application

    async def put_twice(*arguments: object, **options: object) -> int:
        number = await put(*arguments, **options)  # type: ignore[arg-type]
        app = an_application(last_deployed_time_s=time_s)
        server.plane.instance = an_instance(running=True, applications=(app,), revision=2)
        return number

    server.plane.put_application = put_twice  # type: ignore[method-assign]
    code, _, err = servd("deploy", "m:a", "--wait", "-a", server.url)
    assert (code, "deployed anew meanwhile" in err) == ((1, True) if time_s > 5 else (0, False))


@pytest.mark.slow
@pytest.mark.parametrize("existed", [False, True])
def test_run_of_a_document_fails_as_a_deploy_that_waits(servd: Command, server: Server, existed: bool) -> None:
    (servd.folder / "v2.yaml").write_text(V2_DOCUMENT)
    failed = an_application("a", status=ApplicationStatus.DEPLOY_FAILED, message="boom\nin m.py")
    server.plane.instance = an_instance(running=True, applications=(an_application("a"),) if existed else ())
    put = server.plane.put

    async def fail(*arguments: object, **options: object) -> int:
        server.plane.instance = an_instance(running=True, applications=(failed,))
        return await put(*arguments, **options)  # type: ignore[arg-type]

    server.plane.put = fail  # type: ignore[method-assign]
    code, _, err = servd("run", "v2.yaml", "-a", server.url)
    assert code == 1
    assert err == "Error: application 'a' failed to deploy: boom\nin m.py\n"
    assert [call[0] for call in server.plane.calls] == (["put"] if existed else ["put", "delete_application"])


@pytest.mark.slow
def test_a_reload_that_is_refused_is_told_and_the_run_goes_on(servd: Command, server: Server) -> None:
    path = servd.folder / "v2.yaml"
    path.write_text(V2_DOCUMENT)
    server.plane.instance = an_instance(running=True, applications=(an_application("a"),))
    command = [sys.executable, "-m", "servd.cli", "run", "v2.yaml", "--reload", "-a", server.url]
    environment = {**servd.environment, "PYTHONPATH": str(FRUIT.parents[1])}
    with subprocess.Popen(
        command, cwd=servd.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # what was seen first has to be there before it changes: an edit shows by its size
        assert any("Deployed application" in line for line in process.stdout)
        server.plane.error = ConfigError("the port differs")
        while not select.select([process.stderr], [], [], 0.1)[0]:
            with path.open("a") as file:
                file.write("# edited\n")
            assert process.poll() is None
        assert process.stderr.readline() == "Warning: the daemon answered 400: the port differs\n"
        server.plane.error = None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert server.plane.calls[-1][:2] == ("delete_application", "a")


@pytest.mark.slow
def test_delete_waits_until_the_application_is_gone(servd: Command, server: Server) -> None:
    both = an_instance(running=True, applications=(an_application("a b"), an_application("c")))
    leaving = an_application("a b", status=ApplicationStatus.DELETING)
    server.plane.instance = both
    server.plane.next_views = [
        an_instance(running=True, applications=(leaving, an_application("c"))),
        an_instance(running=True, applications=(an_application("c"),)),
    ]
    code, out, err = servd("delete", "a b", "-a", server.url)
    assert (code, err) == (0, "")
    assert "Deleted application 'a b'" in out
    assert [call[:2] for call in server.plane.calls if call[0] != "changed"] == [("delete_application", "a b")]
    code, _, err = servd("delete", "nobody", "-a", server.url)
    assert (code, err) == (1, "Error: there is no application 'nobody'; there are: c\n")
    assert [call[0] for call in server.plane.calls].count("delete_application") == 1


@pytest.mark.slow
def test_delete_tells_that_somebody_deployed_again(servd: Command, server: Server) -> None:
    server.plane.instance = an_instance(running=True, applications=(an_application("a"),))
    server.plane.next_views = [an_instance(running=True, applications=(an_application("a", last_deployed_time_s=2.0),))]
    code, _, err = servd("delete", "a", "-a", server.url)
    assert (code, err) == (1, "Error: application 'a' was deployed again while it was deleted\n")


@pytest.mark.slow
def test_run_of_a_failing_application_takes_it_back(servd: Command, server: Server) -> None:
    failed = an_application("n", status=ApplicationStatus.DEPLOY_FAILED, message="boom")
    server.plane.next_views = []
    server.plane.instance = an_instance(running=True)
    put = server.plane.put_application

    async def fail(*arguments: object, **options: object) -> int:
        server.plane.instance = an_instance(running=True, applications=(failed,))
        return await put(*arguments, **options)  # type: ignore[arg-type]

    server.plane.put_application = fail  # type: ignore[method-assign]
    code, _, err = servd("run", "m:a", "--name", "n", "--runtime-env-json", '{"pip": []}', "-a", server.url)
    assert code == 1
    assert "boom" in err
    assert [call[0] for call in server.plane.calls] == ["put_application", "delete_application"]
    both = ["--runtime-env-json", "{}", "--runtime-env", "x.yaml"]
    assert servd("run", "m:a", *both, "-a", server.url)[0] == 1


def test_who_stays_hears_that_the_daemon_has_stopped(tmp_path: Path) -> None:
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as server:
        presence = Presence(AdminClient(server.url))
        presence.look()
    for _ in range(LOOKS - 1):
        presence.look()
    with pytest.raises(StoppedError, match=r"the daemon at http://127.0.0.1:\d+ has stopped \(.*refused"):
        presence.look()


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--reload"]])
def test_run_ends_with_its_daemon(servd: Command, tmp_path: Path, options: list[str]) -> None:
    (servd.folder / "v2.yaml").write_text(V2_DOCUMENT)
    command = [sys.executable, "-m", "servd.cli", "run", "v2.yaml", *options]
    environment = {**servd.environment, "PYTHONPATH": str(FRUIT.parents[1])}
    with Server(FakePlane(), AccessRules("127.0.0.1"), tmp_path).running() as server:
        server.plane.instance = an_instance(running=True, applications=(an_application("a"),))
        command += ["-a", server.url]
        process = subprocess.Popen(
            command, cwd=servd.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert any("Deployed application" in line for line in process.stdout)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith(f"Error: the daemon at {server.url} has stopped (")
