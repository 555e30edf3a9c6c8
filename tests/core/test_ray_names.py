"""Applications written for Ray Serve import their names; each test in an interpreter of its own."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import servd
from servd import context, exceptions, schema
from servd.config import ControllerOptions, HTTPOptions, ProxyLocation
from servd.controller.shown.status import instance_view
from servd.documents.statuses import serve_status
from servd.exceptions import gRPCStatusError
from servd.ground.absent import INSTEAD, NAMES
from servd.ground.states import ApplicationStatus, ProxyStatus
from servd.rest.bodies import own_status
from tests.core.build import IDENTITY, World


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import servd.compat.ray\n" + code], capture_output=True, text=True, env=env, timeout=30
    )


def test_the_names_that_applications_use() -> None:
    done = python("""
import ray, logging
from ray import serve
from ray.serve.drivers import DAGDriver
from ray.serve.deployment_graph import InputNode, RayServeDAGHandle
from ray.dag.input_node import InputNode as Same
from ray.serve.http_adapters import json_request
from ray.serve.handle import DeploymentHandle, RayServeDeploymentHandle
from ray.serve.exceptions import RayServeException
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeApplicationSchema
from ray.exceptions import RayTaskError
import ray.serve.metrics
import ray.serve.deployment
from ray.serve.deployment import Application, Deployment
from ray.serve.schema import LoggingConfig
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.request_router import ReplicaID as Public
import servd.config
assert DeploymentID is servd.config.DeploymentID and Public is ReplicaID
assert DeploymentID("d", "a") == DeploymentID(name="d", app_name="a") != DeploymentID("a", "d")
assert DeploymentID("d").app_name == "default" and repr(DeploymentID("d")) == "DeploymentID(name='d', app_name='default')"
from ray.util import metrics
import servd, servd.handle, servd.dag
assert serve.deployment is servd.api.deployment and Deployment is serve.Deployment and Application is serve.Application
assert issubclass(metrics.Counter, serve.metrics.Counter) and SERVE_LOGGER_NAME == "ray.serve"
assert serve.run_many and serve.RunTarget
assert serve is servd and ray.serve is servd
assert DeploymentHandle is servd.handle.DeploymentHandle and Same is InputNode is servd.dag.InputNode
assert servd.handle.__spec__.name == "servd.handle" and servd.__spec__.name == "servd"
assert serve.context.get_global_client and serve.deployment and ray.serve.metrics.Counter
assert logging.getLogger("ray.serve") is logging.getLogger("servd")
ray.init(address="auto"); assert ray.is_initialized()
x: ray.ObjectRef
@serve.deployment(ray_actor_options={"num_cpus": 0})
class A:
    def __call__(self): return 5
assert ray.get(serve.run(A.bind(), local=True).remote()) == 5
assert ray.get([serve.run(A.bind(), local=True).remote()]) == [5]
""")
    assert done.returncode == 0, done.stderr


def test_a_runtime_env_holds_for_what_follows(tmp_path: Path) -> None:
    code = """
import json, os, ray, servd.client
from ray import serve
from ray.runtime_env import RuntimeEnv
os.chdir(sys_argv)
class Sent(Exception): pass
class Admin:
    address = "unix:///x"
    def ship(self, digest, data): pass
    def put_application(self, name, order): raise Sent(order)
class Client(servd.client.Client):
    def status(self, *_): return {"running": False, "applications": {}}
servd.client.find_or_start = lambda **_: Client(type("C", (), {"admin": Admin(), "is_closed": False})())
@serve.deployment
class A: pass
def sent():
    try: serve.run(A.bind())
    except Sent as order: return order.args[0].get("runtime_env")
assert sent() is None
ray.init(runtime_env=RuntimeEnv(working_dir=".", py_modules=["pkg", json, "https://h/a.zip"], env_vars={"A": "b"}))
assert sent() == {
    "working_dir": os.getcwd(), "env_vars": {"A": "b"},
    "py_modules": [os.getcwd() + "/pkg", os.path.dirname(json.__file__), "https://h/a.zip"],
}, sent()
try: ray.init(runtime_env={"env_vars": {"A": 1}})
except ValueError as error: assert "env_vars.A: must be a string" in str(error), error
else: raise AssertionError
ray.shutdown()
assert sent() is None
"""
    done = python(code.replace("sys_argv", repr(str(tmp_path))))
    assert done.returncode == 0, done.stderr


def test_who_a_process_is(tmp_path: Path) -> None:
    code = """
import cloudpickle, ray, ray.cloudpickle as pickle
from ray import cloudpickle as again, serve
assert pickle is again is cloudpickle and cloudpickle.__spec__.name == "cloudpickle"
def ids():
    who = ray.get_runtime_context()
    return who.get_node_id(), who.get_actor_id(), who.get_worker_id(), who.get_job_id(), who.get_actor_name()
@serve.deployment
def inside():
    return ids()
node, actor, worker, job, name = ids()
assert (len(node), actor, len(worker), job, name) == (56, None, 56, "01000000", None)
assert ids() == (node, actor, worker, job, name)
assert ray.get_runtime_context().get_accelerator_ids() == {"GPU": ["0", "3"]}
named = serve.run(inside.bind(), name="a", local=True).remote().result()[-1]
assert named.startswith("SERVE_REPLICA::a#inside#"), named
ray.get_runtime_context().get_assigned_resources()
"""
    done = python(code, SERVD_STATE_DIR=str(tmp_path), CUDA_VISIBLE_DEVICES="0,3")
    assert "ServdError: servd's runtime context has no get_assigned_resources; it has get_acc" in done.stderr, (
        done.stderr
    )


NAMED = (
    "starlette.requests.Request",
    "starlette.responses.StreamingResponse",
    "starlette.websockets.WebSocket",
    "starlette.middleware.base.BaseHTTPMiddleware",
    "starlette.middleware.Middleware",
    "starlette.routing.Route",
    "concurrent.futures.ThreadPoolExecutor",
    "http.client.HTTPConnection",
    "http.cookies.SimpleCookie",
    "importlib.util.find_spec",
    "logging.handlers.RotatingFileHandler",
    "logging.config.dictConfig",
    "urllib.request.urlopen",
    "urllib.parse.quote",
)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["from ray import serve", "import servd; servd.deployment"])
def test_modules_that_come_along(first: str) -> None:
    packages = "import " + ", ".join(sorted({name.partition(".")[0] for name in NAMED}))
    for before, after in ((first, packages), (packages, first)):
        done = python("\n".join((before, after, *NAMED)))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_modules_that_nobody_named_are_not_loaded() -> None:
    done = python("""
import sys, logging, starlette
from ray import serve
serve.deployment
assert "starlette.routing" not in sys.modules and "logging.config" not in sys.modules
assert not hasattr(starlette, "nonsense")
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_modules_of_ray_as_attributes() -> None:
    done = python("""
import ray
ray.util.metrics.Counter, ray.dag.input_node.InputNode, ray.dag.InputNode, ray.exceptions.RayTaskError
ray.serve.exceptions.RayServeException, ray.serve.batching.batch
from ray import serve
serve.multiplex.multiplexed, serve.api.run, serve.shutdown_async
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_folder_called_ray_is_not_ray(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    done = python("from ray import serve; serve.deployment", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import ray\n@ray.remote\ndef f(): pass", "make a deployment"),
        ("import ray; ray.kill(1)", "servd has no ray.kill: use `servd.delete`"),
        ("import ray; ray.nonsense", "AttributeError"),
        ("import ray.data", "servd has no ray.data: it is no part of Ray Serve"),
        ("from ray import data", "ImportError: servd has no ray.data: it is no part of Ray Serve"),
        (
            "from ray.serve.llm import LLMConfig",
            "ImportError: servd has no ray.serve.llm: run the engine in a deployment",
        ),
        ("import ray.serve.llm; ray.serve.llm.LLMConfig", "AttributeError: servd has no ray.serve.llm: run the engine"),
        ("from ray.util import ActorPool", "ImportError: servd has no ray.util.ActorPool: make a deployment"),
        ("import ray.serve.gradio_integrations", "`gradio.mount_gradio_app`, and give that to `servd.ingress`"),
        ("import ray.serve._private.router", "servd has no ray.serve._private.router: its Ray Serve API covers"),
        ("from ray.serve import gradio_integrations", "gradio_integrations"),
    ],
)
def test_what_servd_has_not_says_so(code: str, said: str) -> None:
    done = python(code)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.slow
def test_names_from_where_programs_take_them() -> None:
    done = python(
        """
import pickle, ray, servd
from ray import serve
from ray.serve.api import RayServeHandle, DeploymentHandle, ingress, get_replica_context, HTTPOptions, _get_global_client
from ray.serve._private.constants import SERVE_DEFAULT_APP_NAME, SERVE_MULTIPLEXED_MODEL_ID, DEFAULT_HTTP_PORT
from ray.serve._private.common import ApplicationStatus, DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.context import _get_global_client as same
from ray.runtime_env import RuntimeEnvConfig
from ray.util import get_node_ip_address
from ray.exceptions import RayError, RaySystemError, OutOfMemoryError, WorkerCrashedError, ActorUnavailableError
assert ingress is serve.ingress and HTTPOptions is serve.HTTPOptions and RayServeHandle is serve.handle.RayServeHandle
assert not hasattr(serve.api, "nonsense") and same is _get_global_client
assert (SERVE_DEFAULT_APP_NAME, DEFAULT_HTTP_PORT) == ("default", 8000) and SERVE_MULTIPLEXED_MODEL_ID.islower()
assert (ApplicationStatus.UNHEALTHY, DeploymentStatus.UPSCALING, ReplicaState.RUNNING) == ("UNHEALTHY", "UPSCALING", "RUNNING")
assert serve.context._global_client is None and same(raise_if_no_controller_running=False) is None
assert issubclass(OutOfMemoryError, RayError) and not issubclass(OutOfMemoryError, WorkerCrashedError)
try: raise pickle.loads(pickle.dumps(RaySystemError("lost")))
except ray.exceptions.RayError as error: assert str(error) == "lost"
assert ray.get_gpu_ids() == [0, 3] and get_node_ip_address() == "127.0.0.1"
assert not hasattr(ray, "data") and not hasattr(ray.util, "ActorPool") and ray.util.metrics.Counter
import ray.serve.llm
assert not hasattr(ray.serve.llm, "LLMConfig")
serve.get_deployment_handle("d", "a", _check_exists=False, _record_telemetry=False)
""",
        CUDA_VISIBLE_DEVICES="0,3",
        SERVD_STATE_DIR="/nowhere",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_classes_of_routers_stand_for_built_in_ones() -> None:
    done = python("""
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.experimental.capacity_queue_router import CapacityQueueRouter
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.experimental.round_robin_router import RoundRobinRouter
from ray.serve.llm.request_router import PrefixCacheAffinityRouter
from ray.serve.config import RequestRouterConfig
from servd.documents.router_names import RAY_CLASSES, rule_name
given = [PowerOfTwoChoicesRequestRouter, RoundRobinRouter, CapacityQueueRouter, ConsistentHashRouter, PrefixCacheAffinityRouter]
found = [rule_name(RequestRouterConfig(request_router_class=kind).request_router_class) for kind in given]
assert found == [*RAY_CLASSES.values()], found
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_session_begins_and_ends(tmp_path: Path) -> None:
    done = python(
        """
import ray
from servd.documents.program_environment import program_environment
assert not ray.is_initialized()
if not ray.is_initialized():
    session = ray.init(runtime_env={"env_vars": {"A": "b"}}, num_cpus=2)
assert ray.is_initialized() and session and session.dashboard_url == "" and session["node_ip_address"] == "127.0.0.1"
assert {"session_dir", "node_id"} <= {*session.address_info} == {*session}
ray.init(ignore_reinit_error=True)
ray.init(ignore_reinit_error=True, runtime_env={"env_vars": {"A": "other"}})
assert program_environment() == {"env_vars": {"A": "b"}}
ray.init(runtime_env={"env_vars": {"A": "c"}})
assert program_environment() == {"env_vars": {"A": "c"}}
ray.shutdown()
assert not ray.is_initialized() and program_environment() == {}
with ray.init():
    assert ray.is_initialized()
assert not ray.is_initialized()
import os
os.environ["SERVD_PROCESS"] = "a replica"
assert ray.is_initialized()
""",
        SERVD_STATE_DIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr


def test_the_switch() -> None:
    done = python("import ray", SERVD_RAY_COMPAT="0")
    assert "No module named 'ray'" in done.stderr


def test_real_ray_wins(tmp_path: object) -> None:
    (tmp_path / "ray.py").write_text("real = True")  # type: ignore[operator]
    done = python("import ray; assert ray.real", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


TODAY: dict[str, list[str]] = json.loads(Path(__file__).with_name("names_of_today.json").read_text())
"""Public names of Ray Serve 2.60, by module."""


def absent_rows() -> list[str]:
    """The lines of the table of absent names."""
    names: dict[str, list[str]] = {}
    for name, instead in INSTEAD.items():
        names.setdefault(instead, []).append(f"`{name}`")
    return [f"| {', '.join(found)} | {instead} |" for instead, found in names.items()]


def test_every_name_of_today_can_be_imported() -> None:
    lines = [f"from {module} import {', '.join(names)}" for module, names in TODAY.items()]
    done = python("\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")


def test_absent_names_are_recorded_ones_and_the_page_has_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "from-ray-serve.md").read_text().splitlines()
    assert [row for row in absent_rows() if row not in page] == []
    given = [(module, name) for module, names in NAMES.items() for name in names.split()]
    assert {name for _, name in given} == set(INSTEAD)
    known = {(module.replace("ray.serve", "servd", 1), name) for module, names in TODAY.items() for name in names}
    assert {(module.replace("ray.serve", "servd", 1), name) for module, name in given} <= known


def test_an_absent_type_can_be_named_and_says_what_to_use_instead() -> None:
    given: ControllerOptions | None = None
    assert not isinstance(given, ControllerOptions)
    assert pickle.loads(pickle.dumps(ControllerOptions)) is ControllerOptions
    for use in (
        lambda: ControllerOptions(),
        lambda: ControllerOptions.model_validate({}),
        lambda: type("Own", (ControllerOptions,), {}),
    ):
        with pytest.raises(NotImplementedError, match=r"servd has no ControllerOptions: .*servd start"):
            use()
    assert issubclass(gRPCStatusError, Exception)


def test_names_of_today_that_mean_what_servd_has() -> None:
    status = schema.ServeStatus({"node": ProxyStatus.HEALTHY})
    assert status.proxies["node"] == schema.ProxyStatus.HEALTHY
    assert schema.ApplicationStatus.RUNNING == ApplicationStatus.RUNNING
    assert schema.LoggingConfig(encoding=schema.EncodingType.JSON).encoding == "JSON"
    assert exceptions.ReplicaUnavailableError is exceptions.ReplicaDiedError
    places = [HTTPOptions(location=place).location for place in ProxyLocation]
    assert places == ["NoServer", "HeadOnly", "EveryNode"]


def test_errors_say_what_those_of_today_say() -> None:
    full = exceptions.BackPressureError("a_d", 5, 5)
    assert (full.message, full.status_code, full.retry_after_s) == (str(full), 503, None)
    assert pickle.loads(pickle.dumps(full)).message == full.message


def test_the_status_says_how_much_of_every_count_is_wanted() -> None:
    world = World()
    view = instance_view(world.goal, world.observed, world.settings, IDENTITY, version=1, now=0.0)
    view = replace(view, running=True, target_capacity=50.0)
    found = serve_status(dict(own_status(view)))
    assert isinstance(found, schema.ServeStatus)
    assert (found.target_capacity, serve_status({"running": False}).target_capacity) == (50.0, None)


def test_a_rank_is_one_of_both_modules() -> None:
    assert schema.ReplicaRank is context.ReplicaRank
    rank = context.ReplicaRank(rank=1, node_rank=0, local_rank=1)
    assert (rank.rank, rank.node_rank, rank.local_rank) == (1, 0, 1)


@servd.deployment
def nothing() -> None:
    """Deployed by nobody."""


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: servd.run(nothing.bind(), route_prefix="hello"), ValueError, "must start with '/', got 'hello'"),
        (lambda: servd.run(nothing.bind(), route_prefix="/{hello}"), ValueError, "must not hold wildcards"),
        (
            lambda: servd.run(None, controller_options={}),
            ValueError,
            "servd has no controller_options: the controller has",
        ),
        (lambda: servd.run(None, color=1), TypeError, r"run\(\) has no argument 'color'"),
        (lambda: servd.run(None, external_scaler_enabled=True, controller_options=None), TypeError, "an Application"),
        (
            lambda: servd.start(tracing_config={}, http_options={}),
            ValueError,
            "servd has no tracing_config: tracing is of",
        ),
        (lambda: servd.start(color=1), TypeError, r"start\(\) has no argument 'color'"),
        (lambda: servd.run_many([], wait_for_ingress_deployment_creation=False), ValueError, "needs targets"),
        (lambda: servd.run_many([], controller_options={}), ValueError, "servd has no controller_options"),
    ],
)
def test_options_of_today_work_or_say_what_to_use_instead(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_names_that_nobody_has_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = schema.Nonsense
    with pytest.raises(AttributeError, match="no attribute 'TaskResult'"):
        _ = exceptions.TaskResult
