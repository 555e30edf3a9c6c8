"""Flatten an `Application`: names, order, handles and graphs in place of nodes.

How this works: a walk over the bound arguments meets every dependency before the deployment that needs it. Each bound
deployment gets its name when it is met; in the arguments of others a `Maker` puts a lazy handle in its place, and a
graph handle in place of call nodes. Nothing outside the walk from the root becomes part of the application.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, Protocol

from servd.app.deployment import DOCS_PATH_ATTRIBUTE, DRIVER_ATTRIBUTE, Application, Deployment, own_member, parts_of
from servd.app.graph_nodes import GraphNode, InputNode, InputPart, MethodNode
from servd.app.grpc_servicers import Codec
from servd.app.options import checked_for_bind
from servd.calls.pickling import with_replaced
from servd.ground.ids import DeploymentID
from servd.ground.names import check_name
from servd.ground.quick_dataclass import dataclass
from servd.wire.build_messages import BuiltDeployment

_LEAVES = frozenset((str, bytes, int, float, bool, type(None)))
LEGACY_HANDLES = ("RayServeHandle", "RayServeSyncHandle", "RayServeDeploymentHandle")


@dataclass(frozen=True, slots=True)
class InputValue:
    """In a step's arguments: the graph's input, or with `key` a part of it."""

    key: int | str | None = None
    is_attribute: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """In a step's arguments: the result of an earlier step."""

    index: int


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a graph. handle: made by the `Maker`. Containers in the arguments may hold `InputValue`s and `StepResult`s."""

    handle: Any
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Maker(Protocol):
    """Makes what stands for bound deployments and graphs in constructor arguments: handles know loops and sockets, this
    module does not."""

    def handle(self, target: DeploymentID, style: str) -> Any:
        """A lazy handle. style: the annotated legacy type, "DeploymentHandle", or "" without annotation."""
        ...

    def graph(self, steps: tuple[Step, ...]) -> Any:
        """A handle whose call runs the steps and gives the result of the last one."""
        ...


@dataclass(slots=True)
class BuiltApplication:
    """A flattened application.

    deployments: bare name -> deployment with handles in its init arguments; dependencies first, ingress last.
    ingress_name: bare name. route_prefix: of the ingress, from code. docs_path: of the deployment that has one.
    root: what it was built from. outbound: bare name -> those of the deployments that it holds handles to. grpc: methods of the
    ingress that gRPC calls, by full name.
    """

    name: str
    deployments: Mapping[str, Deployment]
    ingress_name: str
    route_prefix: str | None = "/"
    docs_path: str | None = None
    root: Application | None = field(default=None, repr=False)
    outbound: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grpc: Mapping[str, Codec] = field(default_factory=dict)

    @property
    def ingress(self) -> Deployment:
        """The deployment that gets the HTTP requests."""
        return self.deployments[self.ingress_name]


def build_application(root: Any, name: str, maker: Maker) -> BuiltApplication:
    """The built form of an application.

    Args:
        root: what `.bind(...)` gave.
        name: of the application, "" for none: handles then go by bare names.
        maker: see there; `dag.HandleMaker` makes the handles of `servd.handle`.

    Raises:
        TypeError: `root` is no Application, or a call node.
        ValueError: names used twice, prefixes on other deployments than the ingress, an input in a constructor,
            a function as root of several deployments, two documentation paths.
        AssertionError: two InputNodes in one graph.
    """
    if not isinstance(root, Application):
        raise TypeError(f"only an Application, made by `.bind(...)`, can be run, got {_describe(root)}")
    walk = _Walk(name, maker)
    ingress = walk.deploy(root)
    _check_prefixes(walk.found, ingress)
    if walk.found[ingress].is_function and len(walk.found) > 1:
        raise ValueError(f"{ingress} is a function: it cannot be the ingress of several deployments")
    docs = {key: docs_path(item) for key, item in walk.found.items() if docs_path(item)}
    if len(docs) > 1:
        raise ValueError(f"only one deployment of an application can have a docs path, got {', '.join(docs)}")
    root_deployment = walk.found[ingress]
    return BuiltApplication(
        name,
        MappingProxyType(walk.found),
        ingress,
        "/" if root_deployment.has_default_route_prefix else root_deployment.route_prefix,
        next(iter(docs.values()), None),
        root,
        MappingProxyType(walk.outbound),
    )


def describe(built: BuiltApplication) -> tuple[BuiltDeployment, ...]:
    """What the controller is told: dependencies first, ingress last."""
    return tuple(
        _describe_deployment(name, item, built.outbound.get(name, ())) for name, item in built.deployments.items()
    )


def docs_path(deployment: Deployment) -> str | None:
    """Path of the deployment's interactive documentation, if it has one."""
    path = getattr(deployment.func_or_class, DOCS_PATH_ATTRIBUTE, None)
    return path if isinstance(path, str) else None


def _describe_deployment(name: str, deployment: Deployment, outbound: tuple[str, ...]) -> BuiltDeployment:
    options = deployment.config.given()
    # autoscaling in code wins over a count in code (`options` on a deployment that autoscales)
    if options.get("autoscaling_config") is not None:
        options.pop("num_replicas", None)
    if options.get("num_replicas", 1) is None:
        del options["num_replicas"]
    return BuiltDeployment(
        name,
        options,
        is_function=deployment.is_function,
        is_driver_deployment=deployment.config.is_driver_deployment,
        docs_path=docs_path(deployment),
        outbound=outbound,
    )


def _check_prefixes(found: Mapping[str, Deployment], ingress: str) -> None:
    for name, deployment in found.items():
        if name != ingress and not deployment.has_default_route_prefix:
            raise ValueError(
                f"only the ingress {ingress} can have a route_prefix, {name} has {deployment.route_prefix!r}"
            )


def _describe(value: Any) -> str:
    if isinstance(value, MethodNode):
        return f"a call node of {value.method!r}; give it to a DAGDriver"
    return type(value).__name__


@dataclass(slots=True)
class _Graph:
    """One call graph while it is compiled."""

    steps: list[Step] = field(default_factory=list)
    index: dict[int, int] = field(default_factory=dict)
    source: InputNode | None = None


class _Walk:
    def __init__(self, app: str, maker: Maker) -> None:
        self._app, self._maker = app, maker
        self.found: dict[str, Deployment] = {}
        self.outbound: dict[str, tuple[str, ...]] = {}
        # of each deployment that is being flattened now, the innermost last: those that it calls, in order
        self._calls: list[dict[str, None]] = []
        self._names: dict[int, str] = {}
        self._counts: dict[str, int] = {}

    def deploy(self, bound: Application) -> str:
        """Bare name of the bound deployment, which is flattened at its first call."""
        if id(bound) in self._names:
            return self._names[id(bound)]
        deployment, args, kwargs = parts_of(bound)
        self._calls.append({})
        if deployment.is_function:
            # the arguments of a function are those of its call in a graph
            new_args, new_kwargs = (), {}
        else:
            styles = _Styles(deployment.func_or_class, args)
            value = self._driven if hasattr(deployment.func_or_class, DRIVER_ATTRIBUTE) else self._value
            new_args = tuple(value(item, styles.of(index)) for index, item in enumerate(args))
            new_kwargs = {key: value(item, styles.of(key)) for key, item in kwargs.items()}
        name = self._name(deployment)
        flat = deployment.options()
        flat._name, flat._init_args, flat._init_kwargs = name, new_args, new_kwargs
        flat._config = checked_for_bind(flat.config)
        self.found[name] = flat
        self._names[id(bound)] = name
        self.outbound[name] = tuple(self._calls.pop())
        return name

    def _name(self, deployment: Deployment) -> str:
        name = deployment.name
        if name == deployment.func_or_class.__name__:
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            name = check_name(f"{name}_{count}") if count else name
        if name in self.found:
            raise ValueError(f"two deployments of one application are named {name!r}")
        return name

    def _handle(self, bound: Application, style: str) -> Any:
        name = self.deploy(bound)
        if self._calls:
            self._calls[-1][name] = None
        return self._maker.handle(DeploymentID(name, self._app), style)

    def _value(self, value: Any, style: str) -> Any:
        """`value` as the constructor gets it."""
        if isinstance(value, Application) and not _is_call(value):
            return self._handle(value, style)
        if isinstance(value, MethodNode | Application):
            return self._graph(value)
        if isinstance(value, GraphNode):
            raise ValueError("an InputNode has a value only while a request runs: it cannot be bound to a constructor")
        if type(value) in _LEAVES or inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
            return value
        changed = map_containers(value, lambda item: self._value(item, style))
        return self._with_handles(value, style) if changed is value else changed

    def _graph(self, root: MethodNode | Application) -> Any:
        graph = _Graph()
        self._compile(root, graph)
        return self._maker.graph(tuple(graph.steps))

    def _driven(self, value: Any, style: str) -> Any:
        """As `_value`, for an ingress that calls what it holds with each request's input."""
        if isinstance(value, Application) and not _is_call(value) and _takes_nothing(parts_of(value)[0]):
            # a graph of one call without arguments: the input is for others
            return self._graph(value)
        changed = map_containers(value, lambda item: self._driven(item, style))
        return self._value(value, style) if changed is value else changed

    def _with_handles(self, value: Any, style: str) -> Any:
        """A copy of an object that holds bound deployments in its attributes, with handles in their place."""
        try:
            return with_replaced(value, GraphNode, lambda node: self._value(node, style))
        except TypeError as error:
            raise ValueError(
                f"an argument of a constructor holds a bound deployment, and handles can take its place only in a copy: {error}"
            ) from error

    def _compile(self, node: MethodNode | Application, graph: _Graph) -> StepResult:
        if id(node) in graph.index:
            return StepResult(graph.index[id(node)])
        if isinstance(node, MethodNode):
            target, method, args, kwargs = node.target, node.method, node.args, node.kwargs
        else:
            target, method = node, "__call__"
            _, args, kwargs = parts_of(node)
        handle = self._handle(target, "DeploymentHandle")
        new_args = tuple(self._argument(item, graph) for item in args)
        new_kwargs = {key: self._argument(item, graph) for key, item in kwargs.items()}
        graph.steps.append(Step(handle, method, new_args, new_kwargs))
        graph.index[id(node)] = len(graph.steps) - 1
        return StepResult(len(graph.steps) - 1)

    def _argument(self, value: Any, graph: _Graph) -> Any:
        """`value` as a step's template holds it."""
        if isinstance(value, InputNode | InputPart):
            source = value if isinstance(value, InputNode) else value.source
            if graph.source is None:
                graph.source = source
            if graph.source is not source:
                raise AssertionError("a graph has one InputNode, this one has two")
            return InputValue() if isinstance(value, InputNode) else InputValue(value.key, value.is_attribute)
        if isinstance(value, MethodNode) or (isinstance(value, Application) and _is_call(value)):
            return self._compile(value, graph)
        if isinstance(value, Application):
            return self._handle(value, "")
        return map_containers(value, lambda item: self._argument(item, graph))


def _takes_nothing(deployment: Deployment) -> bool:
    """Whether its handler has no parameter, so that a request is served without its input."""
    target: Any = deployment.func_or_class
    handler = target if deployment.is_function else own_member(target, "__call__")
    if not inspect.isfunction(handler):
        return False
    return len(inspect.signature(handler).parameters) == (0 if deployment.is_function else 1)


def _is_call(bound: Application) -> bool:
    deployment, args, kwargs = parts_of(bound)
    return deployment.is_function and bool(args or kwargs)


def map_containers(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with the items of its lists, tuples and dictionaries changed, at any depth; other values as they are."""
    kind = type(value)
    if kind is list:
        return [change(item) for item in value]
    if kind is dict:
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [change(item) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else tuple(items)
    return value


class _Styles:
    """The handle style that the constructor's annotations ask for, per argument."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._by_key: dict[int | str, str] = {}
        self._rest: dict[str, str] = {}
        try:
            parameters = list(inspect.signature(target).parameters.values())
        except (TypeError, ValueError):
            return
        position = 0
        for parameter in parameters:
            style = handle_style(parameter.annotation)
            self._by_key[parameter.name] = style
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._by_key.update(dict.fromkeys(range(position, len(args)), style))
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._rest[""] = style
            else:
                self._by_key[position] = style
                position += 1

    def of(self, key: int | str) -> str:
        return self._by_key.get(key, self._rest.get("", "") if isinstance(key, str) else "")


def handle_style(annotation: Any) -> str:
    """Handle type that an annotation names: a legacy one, "DeploymentHandle", or "" for anything else."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    words = re.findall(r"\w+", text)
    if "DeploymentHandle" in words:
        return "DeploymentHandle"
    return next((name for name in LEGACY_HANDLES if name in words), "")
