"""The client, `status`, and what the verbs say to each other, against a real daemon."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import servd
from servd.client import find
from servd.compat.host import available_resources, cluster_resources, nodes
from servd.compat.submission import ServeSubmissionClient
from servd.context import get_global_client
from servd.exceptions import ServdError
from servd.handle import RayServeHandle, RayServeSyncHandle
from servd.schema import LoggingConfig, ServeDeploySchema, ServeInstanceDetails
from tests.system.running_daemon import eventually
from tests.wheels import a_wheel

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def clean(port: int) -> Iterator[None]:
    assert port
    yield
    client = find()
    assert client is not None
    client.delete_apps(list(servd.status().applications))


@servd.deployment(num_replicas=2)
class Part:
    def __init__(self) -> None:
        self.at_first = servd.get_replica_context().servable_object

    def __call__(self) -> bool:
        return self.at_first is None and servd.get_replica_context().servable_object is self

    def names(self) -> Any:
        replica = servd.get_replica_context().replica_id
        return str(replica), replica.unique_id, replica.deployment_id.name, replica.deployment_id.app_name


@servd.deployment
def whole() -> str:
    return str(servd.get_replica_context().servable_object is not None)


@servd.deployment
class Measured:
    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"x": 1.0}

    def __call__(self) -> str:
        return "measured"


def test_what_is_never_called_is_said() -> None:
    assert servd.run(Measured.bind(), name="m", route_prefix=None).remote().result() == "measured"
    log = Path(os.environ["SERVD_STATE_DIR"], "logs", "serve", "fork_server.log").read_text()
    said = [line for line in log.splitlines() if "never_called" in line]
    assert len(said) == 1
    assert (
        "app=m deployment=Measured method=record_autoscaling_stats reason=servd collects no custom metrics" in said[0]
    )


def test_status_shows_every_part() -> None:
    assert servd.status().applications == {}
    servd.run(Part.bind(), name="a", route_prefix=None)
    shown = servd.status()
    assert [status.value for status in shown.proxies.values()] == ["HEALTHY"]
    app = shown.applications["a"]
    assert (app.status, app.message) == ("RUNNING", "")
    assert app.last_deployed_time_s > 0
    part = app.deployments["Part"]
    assert (part.status, part.replica_states, part.message) == ("HEALTHY", {"RUNNING": 2}, "")
    assert part.status_trigger


def test_who_a_replica_is() -> None:
    handle = servd.run(Part.bind(), name="a", route_prefix=None)
    assert handle.remote().result(20) is True
    tag, letters, name, app = handle.names.remote().result(20)
    assert tag == f"a_Part#{letters}"
    assert (len(letters), name, app) == (6, "Part", "a")
    assert servd.run(whole.bind(), name="b", route_prefix=None).remote().result(20) == "True"


def test_members_of_the_client(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    servd.run(Part.bind(), name="a", route_prefix=None)
    client = get_global_client()
    assert get_global_client() is client
    assert client.http_config.port == port
    assert client.root_url == f"http://127.0.0.1:{port}"
    assert servd.start(http_options={"port": port, "root_url": "http://outside"}) is client
    assert client.root_url == "http://outside"
    monkeypatch.setenv("RAY_SERVE_ROOT_URL", "http://elsewhere")
    assert client.root_url == "http://elsewhere"
    monkeypatch.setattr(client, "given_root_url", "")
    overview = client.get_serve_status("a")
    assert (overview.name, overview.app_status.status, overview.app_status.message) == ("a", "RUNNING", "")
    assert overview.app_status.deployment_timestamp > 0
    assert overview.get_deployment_status("a_Part").status == "HEALTHY"
    assert overview.get_deployment_status("a_Nothing") is None
    assert client.get_serve_status("nothing").app_status.status == "NOT_STARTED"
    assert client._controller.get_pid.remote().result() != os.getpid()
    details = client.get_serve_details()["applications"]["a"]
    assert details["deployments"]["Part"]["target_num_replicas"] == 2
    assert client.get_app_config("a") is client.get_app_config("nothing") is None
    assert isinstance(client.get_handle("a_Part"), RayServeSyncHandle)
    assert isinstance(client.get_handle("a_Part", sync=False), RayServeHandle)
    assert client.get_handle("a_Nothing", missing_ok=True).deployment_name == "a_Nothing"
    with pytest.raises(KeyError, match="a_Nothing"):
        client.get_handle("a_Nothing")
    client.delete_apps(["a", "nothing"])
    assert servd.status().applications == {}


def test_the_client_that_programs_for_ray_submit_documents_with(port: int) -> None:
    folder = {"working_dir": str(Path(__file__).parent / "ray_style")}
    client = ServeSubmissionClient(get_global_client().status()["page_url"], headers={"x-who": "a test"})
    assert client.get_version()
    apps = [{"name": "page", "route_prefix": "/page", "import_path": "front_page:app", "runtime_env": folder}]
    client.deploy_applications({"applications": apps})
    eventually(lambda: ServeInstanceDetails(**client.get_serve_details()).applications["page"].status == "RUNNING")
    answer = httpx.post(f"http://127.0.0.1:{port}/page", json={"text": "four"}, timeout=20)
    assert (answer.status_code, answer.json()) == (201, {"letters": 4})
    with pytest.raises(RuntimeError, match=r"(?s)status code 400: .*applications\.0\.import_path"):
        client.deploy_applications({"applications": [{"name": "x"}]})
    client.delete_applications()
    eventually(lambda: client.get_serve_details()["applications"] == {})
    with pytest.raises(ValueError, match="begins with http"):
        ServeSubmissionClient("ray://here:10001")
    with pytest.raises(ConnectionError, match=r"at address: http://127\.0\.0\.1:1"):
        ServeSubmissionClient("http://127.0.0.1:1").get_serve_details()


def test_the_host_as_programs_for_ray_see_it() -> None:
    assert cluster_resources()["CPU"] == os.cpu_count()
    assert available_resources() == cluster_resources()
    servd.run(Part.options(ray_actor_options={"num_cpus": 0.25, "num_gpus": 0}).bind(), name="a", route_prefix=None)
    assert available_resources()["CPU"] == cluster_resources()["CPU"] - 0.5
    (node,) = nodes()
    assert (node["NodeID"], node["Alive"]) == (*servd.status().proxies, True)
    servd.run(Part.options(ray_actor_options={"num_cpus": 500}).bind(), name="a", route_prefix=None)
    assert "CPU" not in available_resources()


def test_an_option_that_is_not_set_where_serve_runs_is_not_taken_and_that_is_said(
    caplog: pytest.LogCaptureFixture, port: int
) -> None:
    with caplog.at_level(logging.WARNING, "servd"):
        servd.start(http_options={"port": port, "request_timeout_s": 7.0, "keep_alive_timeout_s": 9.0})
    (warned,) = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert warned.startswith("request_timeout_s=7.0 has no effect: Serve runs already, with request_timeout_s=None")


def test_names_that_would_be_one(caplog: pytest.LogCaptureFixture, port: int) -> None:
    with caplog.at_level(logging.WARNING, "servd"):
        servd.run(Part.options(name="b_c").bind(), name="a", route_prefix=None, port=port, host="127.0.0.2")
    # another address than the one in force is no reason to fail, but to say so
    (warned,) = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert warned.startswith("host='127.0.0.2' has no effect: Serve runs already, with host=")
    with pytest.raises(ServdError, match="a_b_c"):
        servd.run(Part.options(name="c").bind(), name="a_b", route_prefix=None)
    with pytest.raises(TypeError, match="bind"):
        servd.run(Part)  # type: ignore[arg-type]


def test_logs_of_one_application() -> None:
    given = LoggingConfig(log_level="ERROR", encoding="JSON")
    servd.run(whole.bind(), name="quiet", route_prefix=None, logging_config=given)
    client = get_global_client()
    found = client.admin.details()["applications"]["quiet"]
    assert found["status"] == "RUNNING"
    with pytest.raises(ValueError, match="log_level"):
        servd.run(whole.bind(), name="loud", route_prefix=None, logging_config={"log_level": "ALL"})


IN_WHEEL = "from servd import deployment\n\n@deployment\ndef word(): return __file__\n\napp = word.bind()\n"


@pytest.mark.long
def test_packages_of_an_application(tmp_path: Path, port: int) -> None:
    good, bad = str(a_wheel(tmp_path, "inwheel", IN_WHEEL)), f"{tmp_path}/absent-1.0-py3-none-any.whl"
    apps = [
        {
            "name": "good",
            "route_prefix": "/good",
            "import_path": "inwheel:app",
            "runtime_env": {"pip": ["--no-index", good]},
        },
        {
            "name": "bad",
            "route_prefix": "/bad",
            "import_path": "inwheel:app",
            "runtime_env": {"pip": ["--no-index", bad]},
        },
    ]
    client = get_global_client()
    client.deploy_apps(ServeDeploySchema(applications=apps))
    eventually(lambda: servd.status().applications["good"].status == "RUNNING")
    eventually(lambda: servd.status().applications["bad"].status == "DEPLOY_FAILED")
    message = servd.status().applications["bad"].message
    assert "runtime_env setup failed: pip: `pip install` failed:" in message
    assert "absent-1.0-py3-none-any.whl" in message.partition("failed:\n")[2]
    # found in the environment of its own
    assert "/code/v-" in httpx.get(f"http://127.0.0.1:{port}/good", timeout=20).text
    stored = client.get_app_config("good")
    assert stored is not None
    assert stored["runtime_env"] == apps[0]["runtime_env"]
    with pytest.raises(ServdError, match="import_path"):
        client.deploy_apps({"applications": [{"name": "x"}]})
