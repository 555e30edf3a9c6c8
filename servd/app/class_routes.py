"""FastAPI routes on methods: `self` becomes a dependency that gives the replica's instance.

Loaded only by applications that use FastAPI.

How this works: routes on methods are replaced in the application itself by routes on copies of these functions, as soon as their
class is decorated; such a route serves an instance of any class that has the method. What a class serves is settled when its
instance has been constructed, so everything counts that its module and its constructor did to the application.
"""

import copy
import dataclasses
import inspect
import os
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection

from servd.exceptions import ServdError

INSTANCE_KEY = "servd.instance"
"""Key of the ASGI scope that holds the replica's instance."""

_DOCUMENTATION = ("openapi", "swagger_ui_html", "swagger_ui_redirect", "redoc_html")
_METHOD = "__servd_method__"
"""Attribute of an endpoint that was made from a method: the method's function."""
_HOME = "__servd_home__"
"""Attribute of such an endpoint: the marks of the class in whose body the method stands."""
MARKS_ATTRIBUTE = "__servd_marks__"
"""Attribute of a decorated class: what `marks_of` gave."""

_marks: WeakKeyDictionary[type[Any], str] = WeakKeyDictionary()


def check_routes(app: FastAPI | APIRouter, target: type[Any]) -> str | None:
    """Bind the routes on methods of `target`, in place; gives the path of the documentation that the application has.

    Raises:
        ServdError: a method among the routes takes no `self`.
    """
    _bind_methods(_router_of(app), target, must_take_self=True)
    return _whole(app).docs_url


def marks_of(target: type[Any]) -> frozenset[str]:
    """What tells a class and its bases from others of their names, as of a cell that ran twice in a notebook, in any process."""
    return frozenset(_mark(kind) for kind in target.__mro__ if kind is not object)


def _mark(kind: type[Any]) -> str:
    # not from `random`, which scripts seed
    return _marks.setdefault(kind, os.urandom(8).hex())


def own_app(app: FastAPI | APIRouter, target: type[Any], *, alone: bool) -> FastAPI:
    """The application with its plain routes and those on methods of `target`.

    Args:
        alone: nobody else in this process uses it: it is changed in place, so that later changes take effect too. Else a
            copy is made.
    """
    app = _whole(app)
    _bind_methods(app.router, target, must_take_self=False)
    if not alone:
        return _copied(app, target)
    _keep_own(app.router, target)
    app.openapi_schema = app.middleware_stack = None
    return app


@contextmanager
def changes_undone(app: FastAPI | APIRouter) -> Iterator[None]:
    """Routes, middleware and handlers of errors are afterwards as before: what was added is left to the copies made of it."""
    parts: list[tuple[Any, dict[str, Any]]] = [
        (router, {"routes": list(router.routes)}) for router in _routers_below(_router_of(app))
    ]
    if isinstance(app, FastAPI):
        kept = {"user_middleware": list(app.user_middleware), "exception_handlers": dict(app.exception_handlers)}
        parts.append((app, kept))
    try:
        yield
    finally:
        for part, before in parts:
            vars(part).update(before)
            _mark_changed(part)


def _router_of(app: FastAPI | APIRouter) -> APIRouter:
    return app.router if isinstance(app, FastAPI) else app


def _whole(app: FastAPI | APIRouter) -> FastAPI:
    if isinstance(app, FastAPI):
        return app
    whole = FastAPI()
    whole.include_router(app)
    return whole


def _copied(app: FastAPI, target: type[Any]) -> FastAPI:
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


def _routers_below(router: Any) -> list[Any]:
    """The router and those whose routes it includes or mounts, each once."""
    found = [router]
    for part in found:
        behind = (_router_behind(route) for route in part.routes)
        found += [below for below in behind if below is not None and all(below is not known for known in found)]
    return found


def _router_behind(route: Any) -> Any:
    """The router that a route includes or mounts; None for any other route."""
    if hasattr(route, "original_router"):
        return route.original_router
    mounted = getattr(route, "app", None)
    return _router_of(mounted) if isinstance(mounted, FastAPI | APIRouter) else None


def _mark_changed(router: Any) -> None:
    if hasattr(router, "_mark_routes_changed"):
        router._mark_routes_changed()


def _bind_methods(router: Any, target: type[Any], *, must_take_self: bool) -> None:
    """Replace, in place, the routes whose endpoint is a method of `target` by routes that fill in its `self`."""
    for part in _routers_below(router):
        for index, route in enumerate(part.routes):
            if not isinstance(route, APIRoute | APIWebSocketRoute) or hasattr(route.endpoint, _METHOD):
                continue
            if _is_method_of(route.endpoint, target) and (must_take_self or _takes_self(route.endpoint)):
                part.routes[index] = bound = _bound_route(route)
                homes = [kind for kind in target.__mro__ if _stands_in(bound.endpoint, kind)]
                if must_take_self and homes:
                    setattr(bound.endpoint, _HOME, frozenset(map(_mark, homes)))
                _mark_changed(part)


def _keep_own(router: Any, target: type[Any]) -> None:
    """Take the routes on methods of other classes out, in place."""
    for part in _routers_below(router):
        part.routes[:] = [route for route in part.routes if _is_for(route, target)]
        _mark_changed(part)


def _bound_route(route: APIRoute | APIWebSocketRoute) -> Any:
    endpoint = _injected(route.endpoint)
    kind = type(route)
    names = [name for name in inspect.signature(kind).parameters if hasattr(route, name) and name != "endpoint"]
    given = {name: getattr(route, name) for name in names}
    if given.get("response_model") is Any:
        # no model at all means the same and lets FastAPI's encoder see arrays and frames
        given["response_model"] = None
    return kind(endpoint=endpoint, **given)


def _injected(function: Any) -> Any:
    """A copy of the method's function whose `self` FastAPI fills in; the function itself stays as it is."""
    if not _takes_self(function):
        raise ServdError(f"the route on {function.__qualname__} needs `self` as its method's first parameter")
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
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
    made.__dict__[_METHOD] = function
    return made


def _instance(connection: HTTPConnection) -> Any:
    return connection.scope[INSTANCE_KEY]


def _routes_for(routes: Iterable[Any], target: type[Any]) -> list[Any]:
    """The plain routes and the target's own."""
    kept = []
    for route in routes:
        if hasattr(route, "original_router"):
            kept.append(_included_for(route, target))
        elif _is_for(route, target):
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


def _is_for(route: Any, target: type[Any]) -> bool:
    """Whether the route is the target's own, or on no method at all."""
    if not isinstance(route, APIRoute | APIWebSocketRoute):
        return True
    method = getattr(route.endpoint, _METHOD, None)
    if method is not None:
        home: Any = getattr(route.endpoint, _HOME, None)
        marks: Any = getattr(target, MARKS_ATTRIBUTE, frozenset())
        if home is None or home & marks:
            return _is_method_of(method, target)
        # of a class that this one's definition has replaced, unless it was put into this one
        return any(_holds(kind, method) for kind in target.__mro__)
    # what is left after binding is of another class, and nobody could fill in its `self`
    return not (_class_name(route.endpoint) and _takes_self(route.endpoint))


def _is_method_of(function: Any, target: type[Any]) -> bool:
    # by name: one of two methods of a name is not in the class any more, and one that travelled by value is a copy;
    # by identity: a function of elsewhere may have been put into the class
    if not inspect.isfunction(function):
        return False
    return any(_stands_in(function, kind) or _holds(kind, function) for kind in target.__mro__ if kind is not object)


def _stands_in(function: Any, kind: type[Any]) -> bool:
    """Whether a function stands in the body of a class of this name."""
    owner = _class_name(function)
    # a class that stood in a function and travelled by value has lost where it stood
    names = {owner, owner.rpartition(".")[2]} if "<locals>" in owner else {owner}
    return kind.__module__ == function.__module__ and kind.__qualname__ in names


def _holds(kind: type[Any], function: Any) -> bool:
    return any(_unwrapped(member) is function for member in vars(kind).values())


def _unwrapped(member: Any) -> Any:
    return getattr(member, "__func__", member)


def _class_name(function: Any) -> str:
    """Qualified name of the class in whose body the function stands; "" for a function outside of classes."""
    scope = getattr(function, "__qualname__", "").rpartition(".")[0]
    return "" if scope.endswith("<locals>") else scope


def _takes_self(function: Any) -> bool:
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "self"
