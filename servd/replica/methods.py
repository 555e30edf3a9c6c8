"""What kind of handler a method is: decides where it runs and how its result travels."""

import inspect
from collections.abc import AsyncGenerator, Callable, MutableMapping
from functools import lru_cache
from types import FunctionType, MethodType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from servd.app.options import BATCH_ATTRIBUTE
from servd.calls.request_context import RequestContext
from servd.ground.quick_dataclass import dataclass
from servd.replica.exchange import HttpExchange

ON_REPLICA_START = "on_replica_start"
HOOKS = frozenset({"reconfigure", "check_health", ON_REPLICA_START})
"""Public methods that are no handlers."""
NEVER_CALLED = {
    "record_autoscaling_stats": "servd collects no custom metrics; a policy may ask for them itself",
    "record_routing_stats": "servd has no routers that choose by them",
}
"""What Ray Serve calls in classes, and servd does not: why."""


@dataclass(frozen=True, slots=True)
class Method:
    """A handler. kind: "async", "sync", "generator" or "async generator"."""

    name: str
    function: Callable[..., Any]
    kind: str
    takes_request: bool


def method_of(name: str, function: Callable[..., Any]) -> Method:
    """The handler behind a bound method or function; one without parameters is called without the request."""
    if isinstance(function, MethodType) and isinstance(function.__func__, FunctionType):
        kind, takes_request = _known_of(function.__func__)
    else:
        kind, takes_request = kind_of(function), _takes_arguments(function)
    return Method(name, function, kind, takes_request)


@lru_cache(1024)
def _known_of(function: FunctionType) -> tuple[str, bool]:
    """Of a method that is bound: its kind, and whether it takes the request. Asked before a fork, children know it."""
    bound = MethodType(function, function)
    return kind_of(bound), _takes_arguments(bound)


def _takes_arguments(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return True


def kind_of(function: Callable[..., Any]) -> str:
    """Kind of a handler, as in `Method`; seen through `functools.partial` and objects that can be called."""
    while not inspect.isroutine(function):
        inner = getattr(function, "func", None) or getattr(type(function), "__call__", None)  # noqa: B004
        if inner is None or inner is function:
            break
        function = inner
    if inspect.iscoroutinefunction(function):
        return "async"
    if inspect.isasyncgenfunction(function) or _is_batched_generator(function):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(function) else "sync"


def _is_batched_generator(function: Any) -> bool:
    # `batch` gives a plain function, for its item waits from the call on
    return hasattr(function, BATCH_ATTRIBUTE) and inspect.isasyncgenfunction(inspect.unwrap(function))


def are_handlers_sync(target: Any) -> bool:
    """Whether every handler of a class is sync: `__call__` and the public methods, hooks aside. Remembered, as `method_of`."""
    try:
        if target not in _sync:
            _sync[target] = _are_handlers_sync(target)
        return _sync[target]
    except TypeError:
        # a metaclass may forbid to look its classes up
        return _are_handlers_sync(target)


_sync: MutableMapping[Any, bool] = WeakKeyDictionary()


def _are_handlers_sync(target: Any) -> bool:
    handlers = ["__call__", *(name for name in public_methods(target) if name not in HOOKS)]
    return not any(kind_of(getattr(target, name)).startswith("async") for name in handlers if _has(target, name))


def public_methods(target: type) -> list[str]:
    """Names of the public methods of a class, sorted."""
    return [name for name, _ in inspect.getmembers(target, inspect.isroutine) if not name.startswith("_")]


def never_called(target: Any) -> list[str]:
    """Which of `NEVER_CALLED` a class has, perhaps in vain."""
    return [name for name in NEVER_CALLED if inspect.isclass(target) and _has(target, name)]


def takes_rank(target: Any) -> bool:
    """Whether the `reconfigure` of a class asks for the replica's rank."""
    hook = getattr(target, "reconfigure", None) if inspect.isclass(target) else None
    try:
        return hook is not None and "rank" in inspect.signature(hook).parameters
    except (TypeError, ValueError):
        return False


def needs_thread(target: Any) -> bool:
    """Whether every request to a deployment of this class or function runs on a thread of sync handlers."""
    if not inspect.isclass(target):
        return method_of("__call__", target).kind == "sync"
    return are_handlers_sync(target)


def is_generator(value: Any) -> bool:
    """Whether a handler's result is to be streamed."""
    return inspect.isgenerator(value) or inspect.isasyncgen(value)


def _has(target: type, name: str) -> bool:
    # every class can be called, by its metaclass; that is not meant
    return any(name in vars(base) for base in target.__mro__)


class UserCallable(Protocol):
    """The user's deployment inside its replica (`replica/user_callable.py`). routes: of its ASGI application, described."""

    routes: tuple[Any, ...]

    async def handle_http(self, exchange: HttpExchange) -> None:
        """Serve one HTTP request or WebSocket: `exchange.finish(...)`, or ASGI with `receive` and `send`."""

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext) -> Any:
        """Result of one handle call."""

    def stream(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: RequestContext
    ) -> AsyncGenerator[Any, None]:
        """Items of one streaming handle call."""
