"""Applications run from Python against a real daemon: both handle styles, graphs, FastAPI, batches, models, errors."""

import asyncio
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from fastapi import FastAPI, Query

import servd
from servd.client import find
from servd.exceptions import RequestCancelledError, ServdError, UserCodeError
from servd.handle import DeploymentHandle, RayServeDeploymentHandle
from tests.system.running_daemon import eventually

FRUIT = Path(__file__).parents[2] / "examples" / "fruit"


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


@pytest.fixture(autouse=True)
def clean(port: int) -> Iterator[None]:
    assert port
    yield
    client = find()
    assert client is not None
    client.delete_apps(list(servd.status().applications))


def ask(port: int, path: str, body: Any = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@servd.deployment
class Tuned:
    def __init__(self, base: Any, add: int = 0) -> None:
        self.value = (0 if isinstance(base, DeploymentHandle) else base) + add + isinstance(base, DeploymentHandle)

    def reconfigure(self, config: dict[str, int]) -> None:
        self.more = config["more"]

    def __call__(self) -> int:
        return int(self.value + getattr(self, "more", 0))


@servd.deployment
class Worker:
    def __init__(self, base: int = 0) -> None:
        self.base = base

    def add(self, x: int) -> int:
        return self.base + x

    def fail(self, code: int) -> None:
        raise OwnError(code)

    def fail_unpicklable(self) -> None:
        raise HoldsLock

    def unpicklable(self) -> Any:
        return threading.Lock()

    def echo(self, value: Any) -> Any:
        return value

    async def count(self, n: int) -> Any:
        for i in range(n):
            yield i

    async def body(self, request: Any) -> str:
        return (await request.body()).decode()

    async def forever(self) -> None:
        await asyncio.Event().wait()

    def context(self) -> tuple[str, str, str]:
        about = servd.get_replica_context()
        return about.deployment, about.app_name, str(about.replica_id).partition("#")[0]


@servd.deployment
class Front:
    def __init__(self, one: DeploymentHandle, two: RayServeDeploymentHandle) -> None:
        self.one, self.two = one, two

    async def __call__(self, request: Any) -> Any:
        ref = await self.two.add.remote(1)
        sums = [await self.one.add.remote(1), await ref]
        chained = await self.one.add.remote(self.one.add.remote(10))
        items = [item async for item in self.one.options(stream=True).count.remote(3)]
        own = await servd.get_deployment_handle("Worker").add.remote(5)
        return {"sums": sums, "chained": chained, "items": items, "own": own, "body": await self.sent(request)}

    async def sent(self, request: Any) -> str:
        text: str = await self.one.body.remote(request)
        return text

    async def by_mistake(self) -> Any:
        return await (await self.one.add.remote(1))


@servd.deployment
class Variable:
    def value(self, name: str) -> str | None:
        return os.environ.get(name)


@servd.deployment
class Variables:
    def __init__(self, *parts: DeploymentHandle) -> None:
        self.parts = parts

    async def values(self, name: str) -> list[Any]:
        return [*[await part.value.remote(name) for part in self.parts], os.environ.get(name)]


def front() -> Any:
    return Front.bind(Worker.bind(100), Worker.options(name="other").bind(200))


def test_deployments_call_each_other(port: int) -> None:
    handle = servd.run(front(), route_prefix="/front")
    status, text = ask(port, "/front", {"a": 1})
    assert (status, json.loads(text)) == (
        200,
        {"sums": [101, 201], "chained": 210, "items": [0, 1, 2], "own": 105, "body": '{"a": 1}'},
    )
    with pytest.raises(TypeError, match="await") as caught:
        handle.by_mistake.remote().result(20)
    assert "SERVD_LEGACY_HANDLES" in str(caught.value.__cause__)


def test_calls_from_a_script(port: int) -> None:
    handle = servd.run(Worker.bind(1), name="w", route_prefix=None)
    assert handle.add.remote(handle.add.remote(1)).result(20) == 3
    assert servd.get([handle.add.remote(n) for n in range(3)]) == [1, 2, 3]
    assert list(handle.options(stream=True).count.remote(3)) == [0, 1, 2]
    assert handle.context.remote().result(20) == ("Worker", "w", "w_Worker")
    array = np.arange(200_000)
    assert np.array_equal(handle.echo.remote(array).result(20), array)
    assert ask(port, "/")[0] == 404

    async def many() -> list[int]:
        one_step = servd.get_app_handle("w")
        return await asyncio.gather(*(one_step.add.remote(n) for n in range(100)))

    assert asyncio.run(many()) == list(range(1, 101))


@pytest.mark.long
def test_variables_of_one_deployment() -> None:
    one = Variable.options(name="one", ray_actor_options={"env_vars": {"OWN": "1"}})
    other = Variable.options(name="other", ray_actor_options={"runtime_env": {"env_vars": {"OWN": "2"}}})
    handle = servd.run(Variables.bind(one.bind(), other.bind()))
    assert handle.values.remote("OWN").result(30) == ["1", "2", None]


def test_errors_come_back() -> None:
    handle = servd.run(Worker.bind())
    with pytest.raises(OwnError) as caught:
        handle.fail.remote(7).result(20)
    assert caught.value.code == 7
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(UserCodeError, match="held"):
        handle.fail_unpicklable.remote().result(20)
    with pytest.raises(TypeError, match="lock"):
        handle.unpicklable.remote().result(20)
    with pytest.raises(ServdError, match="fail_unpicklable"):
        handle.unknown.remote().result(20)
    with pytest.raises(TypeError, match="stream=True"):
        handle.count.remote(3).result(20)
    with pytest.raises(KeyError, match="default_Nothing"):
        servd.get_deployment_handle("Nothing", "default").remote().result(20)
    waiting = handle.forever.remote()
    with pytest.raises(TimeoutError):
        waiting.result(0.01)
    waiting.cancel()
    with pytest.raises(RequestCancelledError):
        waiting.result(20)
    assert handle.add.remote(1).result(20) == 1


def test_a_broken_application_says_why() -> None:
    @servd.deployment
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no model file")

    with pytest.raises(RuntimeError, match="no model file"):
        servd.run(Broken.bind())
    assert servd.status().applications["default"].status == "DEPLOY_FAILED"


@pytest.mark.parametrize(
    ("first", "second", "prefix"),
    [
        ({"route_prefix": "/x"}, {"route_prefix": "/x"}, "/x"),
        ({}, {}, "/"),
        ({}, {"route_prefix": "/"}, "/"),
        ({"route_prefix": "/"}, {}, "/"),
    ],
)
def test_a_taken_prefix_is_refused_and_nothing_changes(first: Any, second: Any, prefix: str) -> None:
    servd.run(Worker.bind(), name="first", **first)
    with pytest.raises(ServdError, match=f"'{prefix}' is already used by application 'first'"):
        servd.run(Worker.bind(), name="second", **second)
    assert list(servd.status().applications) == ["first"]
    assert servd.status().applications["first"].status == "RUNNING"


def test_the_prefix_in_code_is_as_much_taken(tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(
        "import servd\n@servd.deployment(route_prefix='/own')\ndef read():\n    return 1\napp = read.bind()\n"
    )
    client = find()
    assert client is not None
    env = {"working_dir": str(tmp_path)}
    client.deploy_apps({"applications": [{"name": "owner", "import_path": "owner:app", "runtime_env": env}]})
    client.wait_until_healthy("owner")
    before = client.status()["applications"]
    with pytest.raises(ServdError, match="'/own' is already used by application 'owner'"):
        servd.run(Worker.options(route_prefix="/own").bind(), name="second")
    other = servd.run(Worker.bind(), name="other", route_prefix="/other")
    with pytest.raises(ServdError, match="'/own' is already used by application 'owner'"):
        servd.run(Worker.bind(), name="other", route_prefix="/own")
    assert other.add.remote(1).result(20) == 1
    after = client.status()["applications"]
    assert set(after) == {*before, "other"}
    assert after["other"]["route_prefix"] == "/other"


def test_running_again_replaces(port: int) -> None:
    @servd.deployment
    def pid() -> int:
        return os.getpid()

    first = servd.run(pid.bind())
    before = first.remote().result(20)
    again = servd.run(pid.bind())
    assert again.remote().result(20) != before
    assert ask(port, "/")[0] == 200
    servd.delete("default")
    assert ask(port, "/")[0] == 404
    servd.delete("default")


def test_a_handle_works_at_once() -> None:
    # nobody serves it yet, and somebody asked already
    early = servd.get_deployment_handle("Worker", "early")
    with pytest.raises(KeyError, match="early_Worker"):
        early.add.remote(1).result(20)
    handle = servd.run(Worker.bind(1), name="early", route_prefix=None, _blocking=False)
    assert handle.add.remote(1).result(20) == early.add.remote(1).result(20) == 2
    servd.delete("early")
    with pytest.raises(KeyError, match="early_Worker"):
        early.add.remote(1).result(20)
    servd.run(Worker.bind(2), name="early", route_prefix=None)
    assert early.add.remote(1).result(20) == 3


def test_the_fruit_stand(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FRUIT), *sys.path])
    import conditional_dag
    import fruit

    servd.run(fruit.deployment_graph, name="fruit", route_prefix="/fruit")
    servd.run(conditional_dag.serve_dag, name="math", route_prefix="/math")
    assert ask(port, "/fruit", ["MANGO", 2]) == (200, "6")
    assert ask(port, "/fruit/", ["KIWI", 2]) == (200, "-1")
    assert ask(port, "/math", ["ADD", 10]) == (200, "12 pizzas please!")
    assert ask(port, "/math", ["MUL", 10]) == (200, "-20 pizzas please!")
    assert servd.get_app_handle("fruit").predict.remote(["PEAR", 3]).result(20) == 12


def test_fastapi_under_a_prefix(port: int) -> None:
    app = FastAPI()

    @servd.deployment
    @servd.ingress(app)
    class Shop:
        def __init__(self) -> None:
            self.name = "shop"

        @app.get("/item/{name}")
        def item(self, name: str, count: Annotated[int, Query()] = 1) -> str:
            return f"{self.name} {name} {count}"

        @app.get("/broken")
        def broken(self) -> None:
            raise ValueError("boom")

    servd.run(Shop.bind(), route_prefix="/shop")
    assert ask(port, "/shop/item/kiwi?count=2") == (200, '"shop kiwi 2"')
    assert ask(port, "/shop/item/kiwi?count=x")[0] == 422
    assert "/shop/openapi.json" in ask(port, "/shop/docs")[1]
    assert "/item/{name}" in ask(port, "/shop/openapi.json")[1]
    status, text = ask(port, "/shop/broken")
    assert status == 500
    assert text.startswith("Internal Server Error (request id ")
    assert "boom" not in text


def test_what_a_constructor_does_to_its_application(port: int) -> None:
    app = FastAPI()

    @servd.deployment
    @servd.ingress(app)
    class Growing:
        def __init__(self, name: str) -> None:
            self.name = name
            app.add_api_route("/bound", self.bound)
            app.get("/closure")(lambda: self.name)
            mounted = FastAPI()
            mounted.add_api_route("/bound", self.bound)
            app.mount("/mounted", mounted)

        def bound(self) -> str:
            return self.name

    app.get("/late")(lambda: "late")
    servd.run(Growing.bind("by value"), route_prefix="/growing")
    for path in ("bound", "closure", "mounted/bound"):
        assert ask(port, f"/growing/{path}") == (200, '"by value"')
    assert ask(port, "/growing/late") == (200, '"late"')


def test_batches_and_models() -> None:
    @servd.deployment
    class Model:
        def __init__(self) -> None:
            self.loads: list[str] = []

        @servd.batch(max_batch_size=8, batch_wait_timeout_s=0.2)
        async def predict(self, items: list[int]) -> list[tuple[int, int]]:
            return [(item, len(items)) for item in items]

        @servd.multiplexed(max_num_models_per_replica=2)
        async def load(self, model_id: str) -> str:
            self.loads.append(model_id)
            return f"model {model_id}"

        async def __call__(self) -> tuple[str, list[str]]:
            return await self.load(servd.get_multiplexed_model_id()), self.loads

    handle = servd.run(Model.bind())
    assert servd.get([handle.predict.remote(n) for n in range(8)]) == [(n, 8) for n in range(8)]
    for model_id in ("a", "a", "b"):
        name, loads = handle.options(multiplexed_model_id=model_id).remote().result(20)
        assert name == f"model {model_id}"
    assert loads == ["a", "b"]


def test_names_of_ray_serve(port: int) -> None:
    # in a module of its own, by value: the replica finds `ray` as the driver does
    code = """
import servd.compat.ray
import ray
from ray import serve
from ray.serve.handle import RayServeDeploymentHandle

@serve.deployment
class Inner:
    def say(self, x): return f"inner {x}"

@serve.deployment
class Outer:
    def __init__(self, inner: RayServeDeploymentHandle): self.inner = inner
    async def __call__(self, request):
        import ray
        from ray.serve.http_adapters import json_request
        ref: ray.ObjectRef = await self.inner.say.remote(1)
        return await ref

app = Outer.bind(Inner.bind())
"""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(code, scope)
    servd.run(scope["app"])
    assert ask(port, "/") == (200, "inner 1")


def test_an_application_without_a_name_replaces_all_others(port: int) -> None:
    servd.run(Worker.bind(1), name="first", route_prefix="/first")
    servd.run(Worker.bind(2), name="second", route_prefix="/")

    @servd.deployment
    def alone() -> str:
        return servd.get_replica_context().deployment

    handle = servd.run(alone.bind(), name="")
    assert ask(port, "/") == (200, "alone")
    assert handle.remote().result(20) == "alone"
    assert ask(port, "/first")[0] == 200
    eventually(lambda: list(servd.status().applications) == [""])
    assert list(servd.list_deployments()) == ["alone"]
    servd.delete("")
    assert ask(port, "/")[0] == 404


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_deployments_of_release_1_are_deployed_alone(port: int) -> None:
    deployed = Worker.options(name="Alone")
    deployed.deploy(5)
    handle = deployed.get_handle()
    assert servd.get(handle.add.remote(1)) == 6
    assert servd.get_deployment("Alone").get_handle().add.remote(2).result(20) == 7

    async def two_steps() -> Any:
        ref = await deployed.get_handle(sync=False).add.remote(3)
        return await ref

    assert asyncio.run(two_steps()) == 8
    assert deployed.url == f"http://127.0.0.1:{port}/Alone"
    deployed.delete()
    with pytest.raises(KeyError, match="Alone"):
        servd.get_deployment("Alone")


def replicas_of(app: str, name: str) -> int:
    return servd.status().applications[app].deployments[name].replica_states["RUNNING"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_this_program_deployed_alone_is_deployed_again_with_its_code(port: int) -> None:
    Tuned.options(name="Alone", route_prefix="/here").deploy(5, add=1)
    found = servd.get_deployment("Alone")
    assert (found.func_or_class, found.init_args, found.url) == (
        Tuned.func_or_class,
        (5,),
        f"http://127.0.0.1:{port}/here",
    )
    found.options(num_replicas=2).deploy()
    assert replicas_of("Alone", "Alone") == 2
    servd.get_deployment("Alone").options(user_config={"more": 10}).deploy()
    assert (ask(port, "/here"), replicas_of("Alone", "Alone")) == ((200, "16"), 2)
    servd.get_deployment("Alone").delete()
    assert servd.status().applications == {}


def test_a_live_deployment_without_its_code(port: int) -> None:
    servd.run(Tuned.options(name="Top").bind(Tuned.options(name="Part").bind(1)), name="two", route_prefix="/two")
    servd.run(Tuned.bind(3), name="Tuned", route_prefix="/one")
    live = servd.list_deployments()
    assert {name: found.route_prefix for name, found in live.items()} == {
        "two_Part": None,
        "two_Top": "/two",
        "Tuned_Tuned": "/one",
    }
    assert live["Tuned_Tuned"].url == f"http://127.0.0.1:{port}/one"
    servd.get_deployment("Tuned").options(num_replicas=2).deploy()
    servd.get_deployment("two_Part").options(num_replicas=2).deploy()
    assert (replicas_of("Tuned", "Tuned"), replicas_of("two", "Part"), replicas_of("two", "Top")) == (2, 2, 1)
    for refused in (
        lambda: servd.get_deployment("Tuned").bind(),
        lambda: servd.get_deployment("Tuned").deploy(),
        lambda: servd.get_deployment("Tuned").options(user_config={"more": 1}).deploy(),
        lambda: servd.get_deployment("Tuned").options(num_replicas=1).deploy(4),
    ):
        with pytest.raises(RuntimeError, match="the code of Tuned_Tuned is in its replicas, not here"):
            refused()
    with pytest.raises(
        RuntimeError, match=r"one of 2 deployments of application 'two': `servd.delete\('two'\)` deletes"
    ):
        live["two_Part"].delete()
    live["Tuned_Tuned"].delete()
    assert [*servd.status().applications] == ["two"]
    assert ask(port, "/two") == (200, "1")
