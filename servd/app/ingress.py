"""`ingress`: a class that answers HTTP with an ASGI application.

FastAPI is never imported here: an application made with it has brought it along.
"""

import asyncio
import importlib
import inspect
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, overload

from servd.app.asgi_calls import call_app, let_find_pattern
from servd.app.deployment import (
    ASGI_ATTRIBUTE,
    DOCS_PATH_ATTRIBUTE,
    ROUTES_ATTRIBUTE,
    SHUTDOWN_ATTRIBUTE,
    STARTUP_ATTRIBUTE,
)
from servd.calls.failures import tell
from servd.calls.routes.patterns import RoutePatterns
from servd.exceptions import ServdError

_LIFESPAN = "__servd_lifespan__"
_OWN_APP = "__servd_own_app__"
Target = TypeVar("Target")


class IngressDecorator(Protocol):
    """`ingress` of an application: a class stays what it is."""

    @overload
    def __call__(self, target: type[Target]) -> type[Target]: ...
    @overload
    def __call__(self, target: None = None) -> type[Any]: ...


def ingress(app: Any) -> IngressDecorator:
    """Class decorator, under `deployment`: the class answers HTTP with `app`.

    Methods that `app` routes are called on the replica's instance; their other parameters follow FastAPI's rules. What its
    module and the class's constructor do to the application counts, before and after the class is decorated.

    Args:
        app: a FastAPI application, an APIRouter, any ASGI callable; or a function without parameters that makes one, which
            is called in each replica. The decorator called without a class makes one that has nothing but `app`, and that can be
            bound to anything.

    Raises:
        ValueError: the target is no class, or defines `__call__`.
        ServdError: a routed method has no `self`.
    """

    def decorate(target: type[Any] | None = None) -> type[Any]:
        if target is None:
            target = type("ASGIIngressDeployment", (_Arguments,), {"__module__": __name__})
        if not inspect.isclass(target):
            raise ValueError(f"`ingress` decorates a class, got {target!r}")
        if "__call__" in vars(target):
            raise ValueError(f"{target.__name__} must not define `__call__`: the ASGI application answers")
        attributes = {
            "__module__": target.__module__,
            "__qualname__": target.__qualname__,
            "__doc__": target.__doc__,
            DOCS_PATH_ATTRIBUTE: _checked(app, target),
            "__servd_app__": app,
            ASGI_ATTRIBUTE: _answer,
            STARTUP_ATTRIBUTE: _startup,
            SHUTDOWN_ATTRIBUTE: _shutdown,
        }
        if (routes := _class_routes(app)) is not None:
            attributes[routes.MARKS_ATTRIBUTE] = routes.marks_of(target)
        return type(target.__name__, (target,), attributes)

    return decorate


class _Arguments:
    """What an ingress without a class of its own is bound to: the deployments among it become a part of the application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


async def _answer(self: Any, scope: Any, receive: Any, send: Any) -> None:
    app = self.__dict__.get(_OWN_APP) or _own_app(self, alone=False)
    handlers = getattr(app, "exception_handlers", {})
    answers = Exception in handlers or 500 in handlers
    scope["servd.instance"] = self
    if (patterns := self.__dict__.get(ROUTES_ATTRIBUTE)) is not None:
        let_find_pattern(patterns, scope)
    lifespan = self.__dict__.get(_LIFESPAN)
    if lifespan is not None:
        # each request gets its own copy of what the lifespan gave
        scope["state"] = lifespan.state.copy()
    await call_app(app, scope, receive, send, answers_errors=answers)


async def _startup(self: Any, *, alone: bool = False) -> None:
    self.__dict__[_LIFESPAN] = lifespan = Lifespan(_own_app(self, alone=alone), self)
    await lifespan.startup()
    # what is added after this is served, and counted under the application's prefix
    if routes := getattr(self.__dict__[_OWN_APP], "routes", None):
        described = importlib.import_module("servd.app.asgi_routes").described(routes)
        self.__dict__[ROUTES_ATTRIBUTE] = RoutePatterns(described)


async def _shutdown(self: Any) -> None:
    lifespan = self.__dict__.pop(_LIFESPAN, None)
    if lifespan is not None:
        await lifespan.shutdown()


class Lifespan:
    """The lifespan of an ASGI application, in a task of its own; applications without one are fine."""

    def __init__(self, app: Any, instance: Any) -> None:
        self._app, self._instance = app, instance
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.state: dict[str, Any] = {}

    async def startup(self) -> None:
        """Raises whatever the application's start-up raises."""
        self._task = asyncio.create_task(self._run())
        answer = await self._ask("startup")
        if answer is not None and answer["type"].endswith("failed"):
            await asyncio.gather(self._task, return_exceptions=True)
            failure = None if self._task.cancelled() else self._task.exception()
            raise failure or ServdError(f"the application's start-up failed: {answer.get('message', '')}")
        if answer is not None:
            self._task.add_done_callback(_tell_end)

    async def shutdown(self) -> None:
        """Raises whatever the application's shutdown raises."""
        if self._task is None:
            return
        # what it raises from now on is raised here
        self._task.remove_done_callback(_tell_end)
        answer = await self._ask("shutdown")
        if answer is not None and answer["type"].endswith("failed"):
            await asyncio.gather(self._task, return_exceptions=True)
            failure = None if self._task.cancelled() else self._task.exception()
            raise failure or ServdError(f"the application's shutdown failed: {answer.get('message', '')}")

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
            "servd.instance": self._instance,
        }
        await self._app(scope, self._messages.get, self._answers.put)

    async def _ask(self, what: str) -> dict[str, Any] | None:
        """The application's answer; None when it knows no lifespan."""
        assert self._task is not None
        self._messages.put_nowait({"type": f"lifespan.{what}"})
        answer = asyncio.create_task(self._answers.get())
        await asyncio.wait((answer, self._task), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        # an application that raises at once, or returns, has no lifespan
        self._task.exception()
        return None


def _tell_end(task: "asyncio.Task[None]") -> None:
    """User code: the lifespan of an application that has started ended by itself."""
    if not task.cancelled() and (error := task.exception()) is not None:
        tell(error, "lifespan")


def _is_factory(app: Any) -> bool:
    return inspect.isfunction(app) and not inspect.signature(app).parameters


def _class_routes(app: Any) -> Any:
    """The module that knows FastAPI, for an application made with it; None for any other."""
    fastapi = sys.modules.get("fastapi")
    if fastapi is None or not isinstance(app, fastapi.FastAPI | fastapi.APIRouter):
        return None
    return importlib.import_module("servd.app.class_routes")


def _checked(app: Any, target: type[Any]) -> str | None:
    """Path of the application's documentation. Raises ServdError for a route that could not be served."""
    if _is_factory(app):
        return None
    routes = _class_routes(app)
    return _docs_path(app) if routes is None else routes.check_routes(app, target)


def _docs_path(app: Any) -> str | None:
    path = getattr(app, "docs_url", None)
    return path if isinstance(path, str) else None


def _own_app(instance: Any, *, alone: bool) -> Any:
    """The application that answers for an instance, made when the instance is complete."""
    app = type(instance).__servd_app__
    made_here = _is_factory(app)
    if made_here:
        app = app()
    if (routes := _class_routes(app)) is not None:
        # what a factory gave nobody else has, and it may be there because it cannot be copied
        app = routes.own_app(app, type(instance), alone=alone or made_here)
        importlib.import_module("servd.app.encoders").teach_fastapi()
    instance.__dict__[_OWN_APP] = app
    instance.__dict__[DOCS_PATH_ATTRIBUTE] = _docs_path(app)
    return app


def changes_undone(target: Any) -> AbstractContextManager[None]:
    """What constructors of `target` do meanwhile to its application counts for their instances only.

    For processes with more than one instance; a replica has its process, and so its application, for itself.
    """
    app = getattr(target, "__servd_app__", None)
    routes = _class_routes(app)
    return nullcontext() if routes is None else routes.changes_undone(app)
