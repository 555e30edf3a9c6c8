"""FastAPI routes on methods: `self` becomes a dependency that gives the replica's instance.

Loaded only by applications that use FastAPI.
"""

import copy
import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection

from servd.exceptions import ServdError

INSTANCE_KEY = "servd.instance"
"""Key of the ASGI scope that holds the replica's instance."""

_DOCUMENTATION = ("openapi", "swagger_ui_html", "swagger_ui_redirect", "redoc_html")
_OWNER = "__servd_owner__"


def frozen_app(app: FastAPI | APIRouter, target: type[Any]) -> FastAPI:
    """A copy of the application with its plain routes and those on methods of `target`.

    Raises:
        ServdError: a method among the routes takes no `self`.
    """
    if isinstance(app, APIRouter):
        whole = FastAPI()
        whole.include_router(app)
        app = whole
    _bind_methods(app.router, _methods_of(target), target)
    frozen = copy.copy(app)
    frozen.__dict__.update(
        middleware_stack=None,
        openapi_schema=None,
        user_middleware=list(app.user_middleware),
        exception_handlers=dict(app.exception_handlers),
        dependency_overrides=app.dependency_overrides,
    )
    frozen.router = copy.copy(app.router)
    frozen.router.routes = []
    if getattr(frozen.router.middleware_stack, "__self__", None) is app.router:
        frozen.router.middleware_stack = frozen.router.app
    # the documentation's routes belong to the application object: the copy makes its own
    frozen.setup()
    plain = [route for route in app.router.routes if getattr(route, "name", None) not in _DOCUMENTATION]
    frozen.router.routes += _routes_for(plain, target)
    return frozen


def _methods_of(target: type[Any]) -> set[Callable[..., Any]]:
    found: set[Callable[..., Any]] = set()
    for kind in target.__mro__:
        for member in vars(kind).values():
            function = getattr(member, "__func__", member)
            if inspect.isfunction(function):
                found.add(function)
    return found


def _bind_methods(router: Any, methods: set[Callable[..., Any]], target: type[Any]) -> None:
    """Replace, in place, the routes whose endpoint is a method of `target`."""
    for index, route in enumerate(router.routes):
        if isinstance(route, APIRoute | APIWebSocketRoute):
            if route.endpoint in methods:
                router.routes[index] = _bound_route(route, target)
            elif getattr(route.endpoint, _OWNER, "") in _names_of(target):
                # a base class that is an ingress itself was decorated first
                continue
        elif hasattr(route, "original_router"):
            _bind_methods(route.original_router, methods, target)
        elif isinstance(getattr(route, "app", None), FastAPI):
            _bind_methods(route.app.router, methods, target)
    if hasattr(router, "_mark_routes_changed"):
        router._mark_routes_changed()


def _bound_route(route: APIRoute | APIWebSocketRoute, target: type[Any]) -> Any:
    endpoint = _injected(route.endpoint, target)
    kind = type(route)
    names = [name for name in inspect.signature(kind).parameters if hasattr(route, name) and name != "endpoint"]
    given = {name: getattr(route, name) for name in names}
    if given.get("response_model") is Any:
        # no model at all means the same and lets FastAPI's encoder see arrays and frames
        given["response_model"] = None
    return kind(endpoint=endpoint, **given)


def _injected(function: Any, target: type[Any]) -> Any:
    """A copy of the method's function whose `self` FastAPI fills in; the function itself stays as it is."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].name != "self":
        raise ServdError(f"the route on {function.__qualname__} needs `self` as its method's first parameter")
    instance = parameters.pop(0).replace(kind=inspect.Parameter.KEYWORD_ONLY, default=Depends(_instance))
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    parameters.insert(at, instance)
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__dict__.update(function.__dict__)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__doc__, made.__module__, made.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    made.__dict__["__signature__"] = signature.replace(parameters=parameters)
    made.__dict__[_OWNER] = f"{target.__module__}.{target.__qualname__}"
    return made


def _instance(connection: HTTPConnection) -> Any:
    return connection.scope[INSTANCE_KEY]


def _names_of(target: type[Any]) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in target.__mro__}


def _routes_for(routes: Iterable[Any], target: type[Any]) -> list[Any]:
    """The plain routes and the target's own."""
    kept = []
    for route in routes:
        if hasattr(route, "original_router"):
            kept.append(_included_for(route, target))
        elif _is_plain(route) or getattr(route.endpoint, _OWNER, None) in _names_of(target):
            kept.append(route)
    return kept


def _included_for(included: Any, target: type[Any]) -> Any:
    router = included.original_router
    routes = _routes_for(router.routes, target)
    if len(routes) == len(router.routes):
        return included
    other = copy.copy(router)
    other.routes = routes
    context = dataclasses.replace(included.include_context, included_router=other)
    return type(included)(original_router=other, include_context=context)


def _is_plain(route: Any) -> bool:
    """Whether the route is on a function, not on a method of some class."""
    endpoint = getattr(route, "endpoint", None)
    if endpoint is None or not isinstance(route, APIRoute | APIWebSocketRoute):
        return True
    if hasattr(endpoint, _OWNER):
        return False
    name = getattr(endpoint, "__qualname__", "")
    return "." not in name.rpartition("<locals>.")[2]
