"""`servd deploy --engine ray` and its companions, against a fake of a cluster's head."""

import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from servd import cli
from servd.engines.cli import OWN_COMMANDS, check_engine
from servd.engines.ray import cluster_commands as commands
from servd.engines.ray import cluster_document
from servd.engines.ray.cluster import Cluster, ClusterRefusedError, NoClusterError, cluster_address
from servd.engines.ray.cluster_document import differing_http
from servd.exceptions import ConfigError, DeployError
from tests.engines.fake_head import FakeHead, an_app

CODE = "from ray import serve\n@serve.deployment(ray_actor_options={'num_cpus': 1})\nclass D: ...\napp = D.bind()\n"
DOCUMENT = (
    "applications:\n"
    "- {name: one, route_prefix: /one, import_path: m:app, runtime_env: {working_dir: code, excludes: [data]}}\n"
    "- {name: two, route_prefix: /two, import_path: m:app, runtime_env: {working_dir: code, excludes: [data]}}\n"
)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "SERVD_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def head() -> FakeHead:
    return FakeHead()


@pytest.fixture
def cluster(head: FakeHead) -> Iterator[Cluster]:
    with head.running() as address:
        yield Cluster(address)


@pytest.fixture
def path(tmp_path: Path) -> str:
    code = tmp_path / "code"
    (code / "data").mkdir(parents=True)
    (code / "m.py").write_text(CODE)
    (code / "data" / "large.bin").write_bytes(b"x")
    (tmp_path / "serve.yaml").write_text(DOCUMENT)
    return str(tmp_path / "serve.yaml")


def deploy(cluster: Cluster, path: str, **options: Any) -> None:
    commands.deploy(cluster, path, **{"wait": True, "timeout_s": 5.0, "builds": False, **options})


def test_code_is_uploaded_once(head: FakeHead, cluster: Cluster, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    deploy(cluster, path)
    (name,) = head.uploads
    first, second = head.document["applications"]
    assert first["runtime_env"] == second["runtime_env"] == {"working_dir": f"gcs://{name}"}
    with zipfile.ZipFile(io.BytesIO(head.packages[name])) as archive:
        assert archive.namelist() == ["m.py"]
    assert head.document["http_options"] == {"host": "127.0.0.1"}
    assert "Running: one, two." in capsys.readouterr().out
    deploy(cluster, path)
    assert head.uploads == [name]
    assert not commands.show_diff(cluster, path, "table", builds=False)
    (Path(path).parent / "code" / "m.py").write_text(CODE + "\n")
    assert commands.show_diff(cluster, path, "table", builds=False)
    assert head.uploads == [name]
    deploy(cluster, path)
    assert len(head.uploads) == 2


def test_modules_keep_their_name(head: FakeHead, cluster: Cluster, path: str, tmp_path: Path) -> None:
    (tmp_path / "code" / "__init__.py").write_text("")
    Path(path).write_text("import_path: code.m:app\nruntime_env: {py_modules: [code], excludes: [data]}\n")
    deploy(cluster, path)
    with zipfile.ZipFile(io.BytesIO(*head.packages.values())) as archive:
        assert archive.namelist() == ["code/__init__.py", "code/m.py"]


def test_what_would_fail_is_not_sent(head: FakeHead, cluster: Cluster, path: str) -> None:
    (Path(path).parent / "code" / "m.py").write_text("import ray.serve.drivers\n")
    with pytest.raises(ConfigError, match="nothing was sent"):
        deploy(cluster, path)
    assert not head.document
    assert not head.uploads
    deploy(cluster, path, force=True)
    assert head.document


def test_options_of_the_data_port_are_never_changed_in_silence(head: FakeHead, cluster: Cluster, path: str) -> None:
    deploy(cluster, path)
    before = head.document
    Path(path).write_text(DOCUMENT + "http_options: {host: 0.0.0.0, port: 8000}\n")
    with pytest.raises(ConfigError, match=r"host: '127.0.0.1' -> '0.0.0.0'; .*shutdown --engine ray"):
        deploy(cluster, path)
    assert head.document is before
    commands.shut_down(cluster)
    deploy(cluster, path)
    assert head.document["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_a_refusal_ends_it(head: FakeHead, cluster: Cluster, path: str) -> None:
    head.refusal = (400, "env_vars must be strings")
    with pytest.raises(DeployError, match=r"(?s)400: env_vars must be strings.*DEPLOYING"):
        deploy(cluster, path)


def test_what_is_removed_is_told(
    head: FakeHead, cluster: Cluster, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy(cluster, path)
    head.imperative = ["program"]
    Path(path).write_text("\n".join(DOCUMENT.splitlines()[:2]) + "\n")
    deploy(cluster, path)
    out = capsys.readouterr().out
    assert "does not name application 'two'" in out
    assert "'program'" not in out


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", "401: it wants a token, and none was found in RAY_AUTH_TOKEN"),
        ("wrong", "403: it refuses the token of RAY_AUTH_TOKEN"),
    ],
)
def test_tokens_that_are_missing_or_wrong(
    head: FakeHead, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, token: str, expected: str
) -> None:
    head.token = "secret"
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ClusterRefusedError, match=expected) as caught:
        cluster.details()
    assert "wrong" not in str(caught.value)


def test_tokens_are_found_as_rays_own_clients_find_them(
    head: FakeHead, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head.token = "secret"
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("secret\n")
    assert cluster.details()
    (tmp_path / "token").write_text("secret")
    (tmp_path / "home" / ".ray" / "auth_token").unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert cluster.details()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH"):
        cluster.details()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert cluster.details()


def test_one_application_is_removed(head: FakeHead, cluster: Cluster, path: str) -> None:
    deploy(cluster, path)
    before = head.document["applications"]
    commands.delete(cluster, "one")
    assert head.document["applications"] == before[1:]
    head.imperative = ["program"]
    for name, text in (("one", "no application 'one'"), ("program", "came from a program")):
        with pytest.raises(ConfigError, match=text):
            commands.delete(cluster, name)


def test_status_and_config(cluster: Cluster, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands.show_status(cluster, None, "table")
    assert "No application runs" in capsys.readouterr().out
    deploy(cluster, path)
    capsys.readouterr()
    commands.show_status(cluster, None, "table")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["application", "deployment", "route"],
        ["one", "/", "RUNNING"],
        ["D", "HEALTHY", lines[2].split()[2]],
        ["two", "/", "RUNNING"],
        ["D", "HEALTHY", lines[4].split()[2]],
    ]
    commands.show_config(cluster, "one")
    assert "import_path: m:app" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'three'"):
        commands.show_status(cluster, "three", "yaml")


@pytest.mark.parametrize(
    ("apps", "proxies", "waiting", "failures"),
    [
        ({"a": an_app("RUNNING")}, {"n": {"status": "HEALTHY"}}, [], []),
        ({"a": an_app("RUNNING")}, {"n": {"status": "STARTING"}}, ["the proxy of node n is STARTING"], []),
        ({"a": an_app("DEPLOYING")}, {}, ["application 'a' is DEPLOYING"], []),
        ({"a": an_app("DEPLOYING", "", "no CPU")}, {}, ["application 'a' is DEPLOYING: no CPU"], []),
        ({"a": an_app("UNHEALTHY")}, {}, ["application 'a' is UNHEALTHY"], []),
        (
            {
                "a": an_app(
                    "DEPLOY_FAILED",
                    "Traceback (most recent call last):\n  long\nRay: Traceback (most recent call last):\nWhy\n",
                )
            },
            {},
            [],
            ["application 'a' failed to deploy: Traceback (most recent call last):\nWhy"],
        ),
        ({"a": an_app("DEPLOY_FAILED", "why ")}, {}, [], ["application 'a' failed to deploy: why"]),
        ({"a": an_app("DEPLOY_FAILED", "why", "its own")}, {}, [], ["application 'a' failed to deploy: why: its own"]),
        ({}, {}, [], ["application 'a' was removed while it was deployed"]),
        ({"a": an_app("DELETING")}, {}, [], ["application 'a' was removed while it was deployed"]),
    ],
)
def test_what_is_waited_for(
    apps: dict[str, Any], proxies: dict[str, Any], waiting: list[str], failures: list[str]
) -> None:
    assert commands.unfinished({"applications": apps, "proxies": proxies}, ["a"]) == (waiting, failures)


def test_a_wait_that_is_over_says_what_is_missing(head: FakeHead, cluster: Cluster, path: str) -> None:
    head.details = lambda: {"applications": {"a": an_app("DEPLOYING", "", "no CPU is left")}, "proxies": {}}  # type: ignore[method-assign]
    with pytest.raises(DeployError, match="not running after 0 s: application 'a' is DEPLOYING: no CPU is left"):
        commands.wait_until_running(cluster, ["a"], 0.0)


def test_a_head_that_is_busy_is_waited_for(
    head: FakeHead, cluster: Cluster, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(cluster, path, wait=False)
    details, asked = head.details, threading.Event()

    def late_at_first() -> dict[str, Any]:
        if not asked.is_set():
            asked.set()
            gone.wait(20)
        return details()

    gone = threading.Event()
    monkeypatch.setattr(commands, "POLL_S", 0.01)
    head.details = late_at_first  # type: ignore[method-assign]
    try:
        commands.wait_until_running(Cluster(cluster.address, 0.1), ["one"], 60)
    finally:
        gone.set()
    assert asked.is_set()


@pytest.mark.parametrize(
    ("wanted", "running", "expected"),
    [
        ({}, {"host": "a"}, []),
        ({"host": "a", "port": 1}, {"host": "a", "port": 1}, []),
        ({"port": 1}, {"port": 2}, ["port: 2 -> 1"]),
        ({"port": 1}, {}, []),
    ],
)
def test_options_that_differ(wanted: dict[str, Any], running: dict[str, Any], expected: list[str]) -> None:
    assert differing_http(wanted, running) == expected


def test_which_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="say which Ray cluster"):
        cluster_address(None)
    monkeypatch.setenv("SERVD_ADDRESS", "http://head:8265/")
    assert cluster_address(None) == "http://head:8265"
    assert cluster_address("http://other:1") == "http://other:1"
    with pytest.raises(ConfigError, match="is a daemon of servd"):
        cluster_address("unix:///run/x.sock")
    with pytest.raises(NoClusterError, match="dashboard port"):
        Cluster("http://127.0.0.1:1").details()


def test_commands_of_a_daemon_are_not_sent_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine("history")
    monkeypatch.setenv("SERVD_ENGINE", "ray")
    check_engine("deploy")
    with pytest.raises(typer.Exit):
        check_engine("history")
    own = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert own >= OWN_COMMANDS


def test_servds_package_goes_with_what_imports_it(
    head: FakeHead, cluster: Cluster, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    monkeypatch.setattr(cluster_document, "PACKAGE_DIR", str(tmp_path / "package"))
    (Path(path).parent / "code" / "m.py").write_text("import servd\n")
    deploy(cluster, path)
    first, second = head.document["applications"]
    assert first["runtime_env"]["py_modules"] == second["runtime_env"]["py_modules"]
    (package,) = first["runtime_env"]["py_modules"]
    assert len(head.uploads) == 2
    with zipfile.ZipFile(io.BytesIO(head.packages[package.removeprefix("gcs://")])) as archive:
        assert archive.namelist() == ["servd/__init__.py"]
