"""What the arguments of a handle call become before they travel: un-awaited results their values, requests whole."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Protocol

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named ones of a handle call."""
NO_ARGUMENTS: Arguments = ((), {})
_KEPT_IN_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
    "path_params",
)


class Awaited(Protocol):
    """A response that is not awaited yet."""

    async def settled(self) -> "Awaited":
        """A response that holds its value and can be pickled."""
        ...

    @property
    def value(self) -> Any:
        """Value of a settled response."""
        ...


IsAwaited = Callable[[Any], bool]


class ShippedRequest:
    """A Starlette request with its body, on its way to another process, where it is a `Request` again."""

    def __init__(self, scope: dict[str, Any], body: bytes) -> None:
        self.scope, self.body = scope, body

    def __reduce__(self) -> tuple[Any, ...]:
        return restore_request, (self.scope, self.body)


def restore_request(scope: dict[str, Any], body: bytes) -> Any:
    """A `Request` of this scope whose body is all there."""
    # processes that only hold handles never load Starlette unless they get a request
    from starlette.requests import Request

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


def needs_waiting(args: tuple[Any, ...], kwargs: dict[str, Any], is_awaited: IsAwaited) -> bool:
    """Whether something in the arguments, at any depth of lists, tuples, sets and dictionaries, has to be awaited."""
    return any(_found(item, is_awaited) for item in (*args, *kwargs.values()))


async def resolve(
    args: tuple[Any, ...], kwargs: dict[str, Any], is_awaited: IsAwaited
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with un-awaited results resolved, all at once.

    A top-level result becomes its value, a nested one a settled response that the receiver awaits.
    """
    values = await asyncio.gather(*(_resolved(item, is_awaited, is_nested=False) for item in (*args, *kwargs.values())))
    return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))


def _is_request(value: Any) -> bool:
    module = sys.modules.get("starlette.requests")
    return module is not None and isinstance(value, module.Request)


def _found(value: Any, is_awaited: IsAwaited) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return any(_found(item, is_awaited) for item in value)
    if isinstance(value, dict):
        return any(_found(item, is_awaited) for item in value.values())
    return is_awaited(value) or isinstance(value, asyncio.Future) or _is_request(value)


async def _resolved(value: Any, is_awaited: IsAwaited, *, is_nested: bool) -> Any:
    if isinstance(value, asyncio.Future):
        # the task of a two-step handle gives a response; a task of the user's gives any value
        value = await value
    if is_awaited(value):
        response: Awaited = await value.settled()
        return response if is_nested else response.value
    if _is_request(value):
        scope = {key: value.scope[key] for key in _KEPT_IN_SCOPE if key in value.scope}
        return ShippedRequest(scope, await value.body())
    if not _found(value, is_awaited):
        return value
    return await _resolved_container(value, is_awaited)


async def _resolved_container(value: Any, is_awaited: IsAwaited) -> Any:
    if isinstance(value, dict):
        items = await asyncio.gather(*(_resolved(item, is_awaited, is_nested=True) for item in value.values()))
        return dict(zip(value, items, strict=True))
    items = await asyncio.gather(*(_resolved(item, is_awaited, is_nested=True) for item in value))
    if hasattr(value, "_fields"):
        return type(value)(*items)
    kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
    return kind(items)
