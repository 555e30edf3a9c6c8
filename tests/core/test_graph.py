"""From bound deployments to built applications: names, order, handles, graphs; and graphs at work."""

import asyncio
import collections
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import servd
from servd.app.built import BuiltApplication, build_application, describe, handle_style
from servd.dag import HandleMaker, InputNode, RayServeDAGHandle
from servd.exceptions import ServdError
from servd.handle import DeploymentHandle, RayServeDeploymentHandle, RayServeHandle


@servd.deployment
class Leaf:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, x: int) -> int:
        return x + self.value

    def __call__(self, x: int = 0) -> int:
        return x * 10

    async def unpack(self, items: list[Any]) -> list[Any]:
        return [await item for item in items]


@servd.deployment
class Pair:
    def __init__(self, first: Any, second: RayServeDeploymentHandle, *, more: Any = None) -> None:
        self.first, self.second, self.more = first, second, more

    def __call__(self) -> list[str]:
        return [type(self.first).__name__, type(self.second).__name__, type(self.more).__name__]

    async def total(self, x: int) -> int:
        ref = await self.second.add.remote(x)
        return await ref + await self.first.add.remote(x)


@servd.deployment
def double(x: int) -> int:
    return 2 * x


@servd.deployment
class Graph:
    """Runs the graph that it is bound to."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.graph, RayServeDAGHandle):
            ref = await self.graph.remote(*args, **kwargs)
            return await ref
        return await self.graph.remote(*args, **kwargs)


@pytest.fixture
def local() -> Iterator[None]:
    yield
    servd.shutdown()


@pytest.fixture(autouse=True)
def no_daemon(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVD_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("SERVD_ADDRESS", "http://127.0.0.1:1")


def built(app: Any, name: str = "app") -> BuiltApplication:
    return build_application(app, name, HandleMaker())


def test_order_is_dependencies_first_ingress_last() -> None:
    made = built(Pair.bind(Leaf.bind(1), Leaf.options(name="other").bind(2)))
    assert list(made.deployments) == ["Leaf", "other", "Pair"]
    assert made.ingress_name == "Pair"
    assert made.ingress.init_args[0].deployment_name == "app_Leaf"


def test_repeated_names_get_numbers_and_shared_nodes_one_name() -> None:
    shared = Leaf.bind()
    made = built(Graph.bind([Leaf.bind(), shared, {"x": (Leaf.bind(), shared)}]))
    assert list(made.deployments) == ["Leaf", "Leaf_1", "Leaf_2", "Graph"]
    first, second, inner = made.ingress.init_args[0]
    assert [h.deployment_name for h in (first, second, *inner["x"])] == [
        "app_Leaf",
        "app_Leaf_1",
        "app_Leaf_2",
        "app_Leaf_1",
    ]


def test_a_custom_name_used_twice_is_refused() -> None:
    twice = Leaf.options(name="same")
    with pytest.raises(ValueError, match="'same'"):
        built(Pair.bind(twice.bind(), twice.bind()))


def test_no_prefix_without_application_name() -> None:
    made = servd.build(Pair.bind(Leaf.bind(), Leaf.bind()))
    assert made.ingress.init_args[0].deployment_name == "Leaf"


def test_prefixes() -> None:
    assert built(Leaf.bind()).route_prefix == "/"
    assert built(Leaf.options(route_prefix=None).bind()).route_prefix == "/"
    assert built(Leaf.options(route_prefix="/x").bind()).route_prefix == "/x"
    with pytest.raises(ValueError, match="route_prefix"):
        built(Graph.bind(Leaf.options(route_prefix="/x").bind()))
    built(Graph.bind(Leaf.options(route_prefix=None).bind()))


def test_roots() -> None:
    assert built(double.bind()).ingress_name == "double"
    with pytest.raises(TypeError):
        built(Leaf)
    with pytest.raises(TypeError, match="call node"):
        built(Leaf.bind().add.bind(1))
    with pytest.raises(TypeError):
        servd.run(Leaf)  # type: ignore[arg-type]


def test_inputs_belong_to_requests() -> None:
    with InputNode() as inp, pytest.raises(ValueError, match="InputNode"):
        built(Leaf.bind(inp))
    with pytest.raises(ValueError, match="positional"):
        InputNode(1)
    other = InputNode()
    with pytest.raises(AssertionError):
        built(Graph.bind(Leaf.bind().add.bind([inp, other])))


def test_annotations_choose_the_handle() -> None:
    first, second = built(Pair.bind(Leaf.bind(), Leaf.bind(), more=Leaf.bind())).ingress.init_args
    assert (type(first), type(second)) == (DeploymentHandle, RayServeDeploymentHandle)


@pytest.mark.parametrize(
    ("annotation", "style"),
    [
        (RayServeHandle, "RayServeHandle"),
        ("RayServeHandle", "RayServeHandle"),
        (list[RayServeDeploymentHandle], "RayServeDeploymentHandle"),
        ("Optional[handle.RayServeSyncHandle]", "RayServeSyncHandle"),
        (DeploymentHandle, "DeploymentHandle"),
        ("Union[DeploymentHandle, RayServeHandle]", "DeploymentHandle"),
        (int, ""),
        (Any, ""),
    ],
)
def test_handle_style(annotation: Any, style: str) -> None:
    assert handle_style(annotation) == style


def test_what_the_controller_is_told() -> None:
    scaling = Leaf.options(autoscaling_config={"max_replicas": 2}).options(num_replicas=5)
    leaf, function, ingress = describe(built(Pair.bind(scaling.bind(), double.bind())))
    assert leaf.options == {"autoscaling_config": {"max_replicas": 2}}
    assert (function.is_function, ingress.is_function) == (True, False)
    assert ingress.options == {}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"env_vars": {"A": "1"}}, {"runtime_env": {"env_vars": {"A": "1"}}}),
        (
            {"env_vars": {"A": "1", "B": "1"}, "runtime_env": {"env_vars": {"B": "2"}}},
            {"runtime_env": {"env_vars": {"A": "1", "B": "2"}}},
        ),
        ({"runtime_env": {"working_dir": "/a"}}, {"runtime_env": {"working_dir": "file:///a"}}),
        ({"num_cpus": "2"}, {"num_cpus": 2.0}),
        ({}, {}),
    ],
)
def test_actor_options_of_code_are_told_as_those_of_a_document(written: dict[str, Any], told: dict[str, Any]) -> None:
    leaf = Leaf.options(ray_actor_options=written)
    (one,) = describe(built(leaf.bind()))
    assert one.options["ray_actor_options"] == told
    assert leaf.ray_actor_options == written


def test_actor_options_that_were_set_after_bind_are_checked_too() -> None:
    leaf = Leaf.options()
    app = leaf.bind()
    leaf.set_options(ray_actor_options={"num_cpu": 1})
    with pytest.raises(ValueError, match="did you mean 'num_cpus'"):
        built(app)


@pytest.mark.usefixtures("local")
def test_handles_of_both_styles_work() -> None:
    handle = servd.run(Pair.bind(Leaf.bind(1), Leaf.bind(2)), local=True)
    assert handle.remote().result(5) == ["DeploymentHandle", "RayServeDeploymentHandle", "NoneType"]
    assert handle.total.remote(10).result(5) == 23


@pytest.mark.usefixtures("local")
def test_a_graph_runs_its_nodes() -> None:
    with InputNode() as inp:
        leaf = Leaf.bind(1)
        first = leaf.add.bind(inp)
        app = Graph.bind(leaf.unpack.bind([first, double.bind(first)]))
    assert servd.run(app, local=True).remote(4).result(5) == [5, 10]


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("part", "args", "kwargs", "expected"),
    [
        (lambda inp: inp, (3,), {}, 4),
        (lambda inp: inp[1], ([1, 2],), {}, 3),
        (lambda inp: inp["k"], ({"k": 5},), {}, 6),
        (lambda inp: inp[1], (1, 7), {}, 8),
        (lambda inp: inp["k"], (), {"k": 8}, 9),
        (lambda inp: inp.k, (1,), {"k": 9}, 10),
        (lambda inp: inp.imag, (1 + 2j,), {}, 3),
    ],
)
def test_parts_of_the_input(part: Any, args: Any, kwargs: Any, expected: int) -> None:
    with InputNode() as inp:
        app = Graph.bind(Leaf.bind(1).add.bind(part(inp)))
    assert servd.run(app, local=True).remote(*args, **kwargs).result(5) == expected


@pytest.mark.usefixtures("local")
def test_functions_without_arguments_are_handles_that_forward() -> None:
    assert servd.run(Graph.bind(double.bind()), local=True).remote(4).result(5) == 8


@pytest.mark.usefixtures("local")
def test_the_handler_of_a_bound_class_is_a_node_like_its_other_methods() -> None:
    with InputNode() as inp:
        app = Graph.bind(Leaf.bind(1).__call__.bind(inp))
    assert servd.run(app, local=True).remote(4).result(5) == 40
    for bound in (double.bind(), servd.deployment(type("Mute", (), {})).bind()):
        with pytest.raises(AttributeError, match="no method '__call__'"):
            bound.__call__  # noqa: B018 - asking for it is the matter


@dataclasses.dataclass
class Config:
    model: Any
    others: Any = None


class Slotted:
    __slots__ = ("model",)


@pytest.mark.usefixtures("local")
def test_bound_deployments_in_attributes_of_objects_become_handles() -> None:
    leaf = Leaf.bind(1)
    slotted = Slotted()
    slotted.model = leaf
    deep = Config(Config([leaf, {"a": functools.partial(print, leaf)}]), Config(collections.OrderedDict(x={1: leaf})))
    found = built(Pair.bind(Config(leaf), slotted, more=deep))
    assert list(found.deployments) == ["Leaf", "Pair"]
    pair = found.deployments["Pair"]
    first, second = pair.init_args
    handles = [first.model, second.model, deep_of(pair.init_kwargs["more"])]
    assert [handle.deployment_name for handle in handles] == ["app_Leaf"] * 3
    assert isinstance(second.model, RayServeDeploymentHandle)
    # what was bound stays as it is
    assert deep_of(deep) is leaf
    assert servd.run(Holder.bind(Config(leaf)), local=True).remote(4).result(5) == 5


def deep_of(config: Any) -> Any:
    inner = config.model.model
    assert inner[1]["a"].args[0] == inner[0]
    return config.others.model["x"][1]


@servd.deployment
class Holder:
    def __init__(self, config: Config) -> None:
        self.model = config.model

    async def __call__(self, x: int) -> int:
        return await self.model.add.remote(x)


def test_objects_without_bound_deployments_are_bound_as_they_are() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            raise SystemExit("not to be pickled")

    plain = [Config(1), Odd(), threading.Lock(), type, print, Config]
    found = built(Pair.bind(plain, 2)).deployments["Pair"].init_args[0]
    assert all(one is other for one, other in zip(found, plain, strict=True))
    with pytest.raises(ValueError, match=r"only in a copy: cannot copy Config: .*lock"):
        built(Pair.bind(Config(Leaf.bind(), threading.Lock()), 2))


@servd.deployment
class Meeting:
    """Both calls must be there before either answers."""

    def __init__(self) -> None:
        self.here = 0
        self.all_here = asyncio.Event()

    async def meet(self, x: int) -> int:
        self.here += 1
        if self.here == 2:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), 5)
        return x

    async def add(self, a: int, b: int) -> int:
        return a + b + 100 * self.here


@pytest.mark.usefixtures("local")
def test_independent_nodes_run_at_the_same_time_and_shared_ones_once() -> None:
    with InputNode() as inp:
        place = Meeting.bind()
        left, right = place.meet.bind(inp), place.meet.bind(2)
        place.meet.bind(99)
        app = Graph.bind(place.add.bind(place.add.bind(left, right), left))
    assert servd.run(app, local=True).remote(1).result(5) == 1 + 2 + 200 + 1 + 200


@pytest.mark.usefixtures("local")
def test_the_error_of_a_node_is_the_error_of_the_graph() -> None:
    with InputNode() as inp:
        leaf = Leaf.bind(1)
        app = Graph.bind(leaf.add.bind(leaf.add.bind(inp)))
    with pytest.raises(TypeError, match="concatenate"):
        servd.run(app, local=True).remote("x").result(5)


@pytest.mark.usefixtures("local")
def test_local_errors_are_those_of_replicas() -> None:
    handle = servd.run(Leaf.bind(1), local=True)
    with pytest.raises(ServdError, match="add"):
        handle.unknown.remote().result(5)
    assert servd.get_app_handle("default").add.remote(1).result(5) == 2
    servd.delete("default")
    with pytest.raises(ServdError):
        servd.get_app_handle("default")


def test_verbs_without_daemon() -> None:
    assert servd.status().applications == {}
    servd.shutdown()
    with pytest.raises(ServdError, match="not running"):
        servd.delete("x")
    with pytest.raises(ServdError, match="replica"):
        servd.get_replica_context()
    with pytest.raises(ServdError, match="app_name"):
        servd.get_deployment_handle("x")
    assert servd.get_deployment_handle("x", "a").deployment_name == "a_x"
    with pytest.raises(ServdError, match="not running"):
        servd.get_deployment_handle("x", "a").remote()
