"""`DAGDriver`: the ingress that runs call graphs."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from servd.app.asgi_calls import call_app
from servd.app.deployment import make_deployment
from servd.app.json_text import compact_json_text
from servd.dag import RayServeDAGHandle
from servd.exceptions import ServdError
from servd.handle import DeploymentHandle
from servd.http_adapters import json_request, starlette_request

__all__ = [
    "DAGDriver",
]

Adapter = Callable[..., Any]

_VERBS = ("GET", "POST")
_PLAIN_ADAPTERS = (starlette_request, json_request)
_PLAIN_TYPES = (str, int, float, bool, type(None))


class GraphDriver:
    """The class behind `DAGDriver`.

    Args:
        dags: a graph or bound deployment, or a dict route -> such.
        http_adapter: what makes the graph's input from a request: None = the request itself, a function with
            annotated parameters, a pydantic class, or the import path of one of these.

    Raises:
        ValueError: the adapter is no function, or one of its parameters has no annotation.
    """

    __servd_driver__ = True

    def __init__(
        self,
        dags: "DeploymentHandle | RayServeDAGHandle | dict[str, DeploymentHandle | RayServeDAGHandle]",
        http_adapter: Any = None,
    ) -> None:
        self._graphs: dict[str, Any] = dict(dags) if isinstance(dags, Mapping) else {}
        self._single = None if isinstance(dags, Mapping) else dags
        self._adapter = load_http_adapter(http_adapter)
        self._routes = [(*compile_path(route), graph) for route, graph in self._graphs.items()]
        self._app = None if self._adapter in _PLAIN_ADAPTERS else self._make_app()

    async def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Result of the single graph.

        Raises:
            ServdError: the driver has several.
        """
        if self._single is None:
            raise ServdError("this driver has several graphs: use `predict_with_route`")
        return await _run(self._single, args, kwargs)

    async def predict_with_route(self, route: str, *args: Any, **kwargs: Any) -> Any:
        """Result of the graph of a route.

        Raises:
            ServdError: there is no such route.
        """
        if route not in self._graphs:
            raise ServdError(f"no graph at route {route!r}; routes: {', '.join(self._graphs) or 'none'}")
        return await _run(self._graphs[route], args, kwargs)

    async def __servd_asgi__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        if self._app is not None:
            if not _path_in_app(scope):
                scope = {**scope, "path": scope["path"] + "/"}
            await call_app(self._app, scope, receive, send)
            return
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        graph = self._single
        if graph is None:
            graph = self._route(request)
            if graph is None:
                return JSONResponse({"detail": "Not Found"}, 404)
        if request.method not in _VERBS:
            return JSONResponse({"detail": "Method Not Allowed"}, 405, {"allow": ", ".join(_VERBS)})
        return await _respond(graph, await self._adapter(request))

    def _route(self, request: Request) -> Any:
        path = _path_in_app(request.scope) or "/"
        for pattern, _, converters, graph in self._routes:
            if match := pattern.match(path):
                found = {key: converters[key].convert(text) for key, text in match.groupdict().items()}
                request.scope["path_params"] = {**request.scope.get("path_params", {}), **found}
                return graph
        return None

    def _make_app(self) -> Any:
        graphs = self._graphs if self._single is None else {"/{servd_path:path}": self._single}
        runners = {route: partial(_respond, graph) for route, graph in graphs.items()}
        # FastAPI is half a second and 20 MB: only drivers whose adapter needs it pay for it
        return importlib.import_module("servd.app.driver_routes").driver_app(runners, self._adapter, _VERBS)


DAGDriver = make_deployment(GraphDriver, {"name": "DAGDriver", "route_prefix": "/"})


async def _run(graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(graph, RayServeDAGHandle):
        return await (await graph.remote(*args, **kwargs))
    return await graph.remote(*args, **kwargs)


async def _respond(graph: Any, source: Any) -> Response:
    value = await _run(graph, (source,), {})
    if isinstance(value, Response):
        return value
    # as above: FastAPI's encoder, where it would change something
    plain = value if _is_plain(value) else importlib.import_module("servd.app.encoders").encoded(value)
    return Response(compact_json_text(plain), media_type="application/json")


def load_http_adapter(given: Any) -> Adapter:
    """The adapter function that `http_adapter` stands for.

    Raises:
        ValueError: no function, or a parameter without annotation.
    """
    if given is None:
        return starlette_request
    if isinstance(given, str):
        module, _, name = given.replace(":", ".").rpartition(".")
        given = getattr(importlib.import_module(module), name)
    if inspect.isclass(given) and hasattr(given, "model_validate"):
        return _body_adapter(given)
    if not inspect.isfunction(given):
        raise ValueError(f"http_adapter must be a function or a pydantic class, got {given!r}")
    for parameter in inspect.signature(given).parameters.values():
        if parameter.annotation is parameter.empty:
            raise ValueError(f"parameter {parameter.name!r} of http_adapter {given.__name__} needs an annotation")
    return given


def _body_adapter(model: type[Any]) -> Adapter:
    def adapter(body: Any) -> Any:
        return body

    adapter.__annotations__ = {"body": model}
    return adapter


def _path_in_app(scope: Any) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_plain(value: Any) -> bool:
    """Whether FastAPI's encoder would leave the value as it is."""
    kind = type(value)
    if kind in _PLAIN_TYPES:
        return True
    if kind is list or kind is tuple:
        return all(_is_plain(item) for item in value)
    if kind is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    return False
