"""The user's instance or function in a replica: construct, call, reconfigure, check, close."""

import asyncio
import contextvars
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from servd.app.asgi_calls import call_with_request, routes_behind
from servd.app.deployment import ASGI_ATTRIBUTE, DOCS_PATH_ATTRIBUTE, SHUTDOWN_ATTRIBUTE, STARTUP_ATTRIBUTE, Deployment
from servd.calls.failures import tell_or_log
from servd.calls.replica_context import ReplicaContext
from servd.calls.request_context import RequestContext
from servd.exceptions import RayServeException
from servd.ground.clock import Clock, SystemClock
from servd.replica.instances import has_hooks_on_thread, new_instance
from servd.replica.methods import ON_REPLICA_START, Method, is_generator, method_of, public_methods
from servd.replica.responses import UTF8_TEXT, Exchange, body_message, exit_error, value_response
from servd.replica.sync_threads import SyncThreads

_END = object()
# looked up first: most handlers return one of these
_PLAIN = frozenset((bytes, str, dict, list, int, float, bool, type(None)))
_closed: list[Any] = []
"""Instances whose `__del__` was called: these references outlive everything, so that it is not called again."""


def ignore_end(method: str, succeeded: bool, began: float) -> None:
    """Nobody wants to know that a request ended."""


class UserCallable:
    """What a deployment's code is to its replica. All methods belong on the main loop.

    Sync handlers run on `max_sync_threads` threads. If every handler is sync, so do the sync ones of
    `__init__`, `reconfigure` and `__del__`, always on the same one; otherwise these run on the loop's thread.

    Args:
        owns_process: there is no other instance in this process, as in a replica.

    Attributes:
        docs_path: of the documentation that the instance serves, "" without one. routes: of its ASGI application, described.
    """

    def __init__(
        self,
        deployment: Deployment,
        context: ReplicaContext,
        *,
        max_sync_threads: int = 1,
        owns_process: bool = False,
        on_end: Callable[[str, bool, float], None] = ignore_end,
        clock: Clock | None = None,
    ) -> None:
        self._deployment = deployment
        self._context = context
        self._target: Any = deployment.func_or_class
        self.threads = SyncThreads(max_sync_threads)
        self._owns_process = owns_process
        self._methods: dict[str, Method] = {}
        self._hooks_on_thread = has_hooks_on_thread(deployment)
        self._instance: Any = None
        self.docs_path = ""
        self.routes: tuple[Any, ...] = ()
        self._entry: Method | None = None
        self._asgi: Callable[..., Awaitable[None]] | None = None
        self._on_end = on_end
        self._now = (clock or SystemClock()).now
        self._running = 0
        self._is_held = False
        self._released: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        held = ", held" if self._is_held else ""
        return f"UserCallable({self._deployment.name}, running={self._running}{held})"

    @property
    def running(self) -> int:
        """Requests in user code now."""
        return self._running

    async def construct(self, preloaded: Any = None) -> None:
        """Make the instance, let it start and start its ASGI application. Raises whatever the user's code raises.

        Args:
            preloaded: the instance, where the template has made it.
        """
        if self._deployment.is_function:
            self._instance = self._target
            self._entry = method_of("__call__", self._target)
        else:
            on_thread = self.threads.run_first if self._hooks_on_thread else None
            on_made = partial(setattr, self, "_instance")
            await self._start_instance(await new_instance(self._deployment, on_thread, on_made, preloaded))
        self._context.servable_object = self._instance

    async def _start_instance(self, instance: Any) -> None:
        self._instance = instance
        if (hook := getattr(instance, ON_REPLICA_START, None)) is not None:
            await self._run_hook(hook)
        if callable(entry := getattr(self._instance, "__call__", None)):  # noqa: B004 - the method itself is wanted
            self._entry = method_of("__call__", entry)
        self._asgi = getattr(self._instance, ASGI_ATTRIBUTE, None)
        if startup := getattr(self._instance, STARTUP_ATTRIBUTE, None):
            await startup(alone=self._owns_process)
        self.docs_path = getattr(instance, DOCS_PATH_ATTRIBUTE, None) or ""
        self.routes = routes_behind(instance)

    async def reconfigure(self, user_config: Any, **rank: Any) -> None:
        """Give the instance its `user_config`, and its rank: waits for running requests, holds new ones meanwhile.

        Raises:
            ServdError: there is no method `reconfigure`.
            Exception: whatever it raises.
        """
        method = None if self._deployment.is_function else getattr(self._instance, "reconfigure", None)
        if method is None:
            kind = "function" if self._deployment.is_function else "class"
            raise RayServeException(
                f"user_config is set, but the {kind} {self._deployment.name} has no method `reconfigure`"
            )
        loop = asyncio.get_running_loop()
        await self._wait_until_released()
        self._is_held = True
        try:
            while self._running:
                self._idle = loop.create_future()
                await self._idle
            await self._run_hook(partial(method, user_config, **rank))
        finally:
            self._idle = None
            self._is_held = False
            if self._released is not None:
                self._released.set_result(None)
                self._released = None

    @property
    def health_check(self) -> Callable[[], Any] | None:
        """The bound `check_health` of the user, if there is one; a coroutine function belongs on the main loop."""
        return None if self._deployment.is_function else getattr(self._instance, "check_health", None)

    @property
    def can_close(self) -> bool:
        """Whether there is an instance, if only half made, and none of its hooks occupies a thread; any thread may ask."""
        return self._instance is not None and not self.threads.is_busy

    async def close(self) -> None:
        """End the ASGI application, then call the user's `__del__`; what they raise is told. Once."""
        instance, self._instance = self._instance, None
        if instance is None or self._deployment.is_function:
            return
        finalizer = getattr(type(instance), "__del__", None)
        try:
            if shutdown := getattr(instance, SHUTDOWN_ATTRIBUTE, None):
                await shutdown()
        except Exception as error:
            tell_or_log(error, "lifespan")
        try:
            if finalizer is not None:
                await self._run_hook(finalizer, instance)
        except Exception as error:
            tell_or_log(error, "__del__")
        _closed.append(instance)

    async def handle_http(self, exchange: Exchange) -> None:
        """Answer one HTTP request or WebSocket. Raises what the handler raises before the response began."""
        if self._is_held:
            await self._wait_until_released()
        self._running += 1
        began, succeeded = self._now(), False
        try:
            entry = self._entry
            if self._asgi is not None:
                await self._asgi(exchange.scope, exchange.receive, exchange.send)
            elif entry is not None and entry.kind == "async" and exchange.scope["type"] == "http":
                # most requests: spares them a coroutine and a call
                if entry.takes_request:
                    send: Any = exchange.send
                    value = await entry.function(Request(exchange.scope, exchange.receive, send))
                else:
                    value = await entry.function()
                if type(value) in _PLAIN:
                    status, headers, body = value_response(value)
                    if len(body) < exchange.whole_below:
                        exchange.finish(status, headers, body)
                    else:
                        await exchange.answer(status, headers, body)
                else:
                    await self._answer_with(exchange, value)
            else:
                await self._answer(exchange, entry)
            succeeded = True
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            raise exit_error(error) from error
        finally:
            self._running -= 1
            if not self._running and self._idle is not None:
                self._wake()
            self._on_end("__call__", succeeded, began)

    async def call(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: RequestContext,  # noqa: ARG002
    ) -> Any:
        """Result of one handle call.

        Raises:
            ServdError: no such method; the text lists the public ones.
            TypeError: the method is a generator.
            Exception: whatever the method raises.
        """
        if self._is_held:
            await self._wait_until_released()
        self._running += 1
        began, succeeded = self._now(), False
        try:
            found = self._methods.get(method) or self.find(method)
            if found.kind in ("async", "sync"):
                # most calls: spares them a coroutine
                is_async = found.kind == "async"
                result = await (found.function(*args, **kwargs) if is_async else self._invoke(found, args, kwargs))
                if not is_generator(result):
                    succeeded = True
                    return result
            raise TypeError(
                f"{self._deployment.name}.{method} is a generator: call it through a handle with "
                "`.options(stream=True)`"
            )
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            raise exit_error(error) from error
        finally:
            self._leave(method, succeeded, began)

    async def stream(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,  # noqa: ARG002 - as above
    ) -> AsyncGenerator[Any, None]:
        """Items of one streaming handle call.

        Raises:
            ServdError: no such method; the text lists the public ones.
            TypeError: the method is no generator.
            Exception: whatever the method raises.
        """
        if self._is_held:
            await self._wait_until_released()
        self._running += 1
        began, succeeded = self._now(), False
        try:
            found = self.find(method)
            # an async handler runs in this task's context: its generator sees what it has set there
            own = None if found.kind == "async" else contextvars.copy_context()
            result = await self._invoke(found, args, kwargs, own)
            if not is_generator(result):
                raise TypeError(f"{self._deployment.name}.{method} is no generator: call it without `stream=True`")
            async with aclosing(self._items(result, own or contextvars.copy_context())) as items:
                async for item in items:
                    yield item
            succeeded = True
        except (Exception, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            raise exit_error(error) from error
        finally:
            self._leave(method, succeeded, began)

    async def _answer(self, exchange: Exchange, entry: Method | None) -> None:
        if exchange.scope["type"] != "http":
            await exchange.send({"type": "websocket.close", "code": 1000})
            return
        if entry is None:
            raise RayServeException(f"{self._deployment.name} has no method `__call__`: it cannot answer HTTP requests")
        # Starlette types its messages as mutable mappings, the exchange as dictionaries: they are the same
        send: Any = exchange.send
        arguments = (Request(exchange.scope, exchange.receive, send),) if entry.takes_request else ()
        own = contextvars.copy_context()
        await self._answer_with(exchange, await self._invoke(entry, arguments, {}, own), own)

    async def _answer_with(self, exchange: Exchange, value: Any, own: contextvars.Context | None = None) -> None:
        if isinstance(value, Response):
            if type(value).__call__ is Response.__call__ and value.background is None:
                await exchange.answer(value.status_code, value.raw_headers, bytes(value.body))
            else:
                send: Any = exchange.send
                await value(exchange.scope, exchange.receive, send)
        elif is_generator(value):
            await self._stream_response(exchange, value, own or contextvars.copy_context())
        else:
            await exchange.answer(*value_response(value))

    async def _stream_response(self, exchange: Exchange, value: Any, own: contextvars.Context) -> None:
        async with aclosing(self._items(value, own)) as items:
            # what fails before the first item is still a 500
            first = await anext(items, _END)
            await exchange.send({"type": "http.response.start", "status": 200, "headers": UTF8_TEXT})
            if first is not _END:
                await exchange.send(body_message(first))
                async for item in items:
                    await exchange.send(body_message(item))
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _items(self, generator: Any, own: contextvars.Context) -> AsyncGenerator[Any, None]:
        """Items of a handler's generator; a sync one runs from its first line to its last in `own`, the handler's context."""
        if inspect.isasyncgen(generator):
            async with aclosing(generator):
                async for item in generator:
                    yield item
            return
        try:
            while (item := await self.threads.run(next, generator, _END, context=own)) is not _END:
                yield item
        finally:
            await self.threads.run(generator.close, context=own)

    async def _invoke(
        self,
        method: Method,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        own: contextvars.Context | None = None,
    ) -> Any:
        if method.kind == "sync":
            result = await self.threads.run(partial(method.function, *args, **kwargs), context=own)
            return await result if inspect.isawaitable(result) else result
        result = method.function(*args, **kwargs)
        return await result if method.kind == "async" else result

    def find(self, name: str) -> Method:
        """The public method of that name; raises RayServeException where there is none."""
        found = self._methods.get(name)
        if found is None:
            found = self._methods[name] = self._look_up(name)
        return found

    def _look_up(self, name: str) -> Method:
        if name == "__call__" and self._asgi is not None:
            asgi = self._asgi

            async def serve(request: Request) -> Response:
                return await call_with_request(asgi, request)

            return Method(name, serve, "async", True)
        if name == "__call__" and self._entry is not None:
            return self._entry
        is_own = not name.startswith("__") and not self._deployment.is_function
        function = getattr(self._instance, name, None) if is_own else None
        if not callable(function):
            raise RayServeException(
                f"{self._deployment.name} has no method {name!r}; its public methods are: "
                f"{', '.join(self._public_methods()) or 'none'}"
            )
        return method_of(name, function)

    def _public_methods(self) -> list[str]:
        if self._deployment.is_function:
            return ["__call__"]
        entry = ["__call__"] if self._entry is not None or self._asgi is not None else []
        return entry + public_methods(type(self._instance))

    async def _run_hook(self, function: Callable[..., Any], *args: Any) -> None:
        if self._hooks_on_thread and not inspect.iscoroutinefunction(function):
            result = await self.threads.run_first(function, *args)
        else:
            result = function(*args)
        if inspect.isawaitable(result):
            await result

    def _leave(self, method: str, succeeded: bool, began: float) -> None:
        self._running -= 1
        self._wake()
        self._on_end(method, succeeded, began)

    def _wake(self) -> None:
        if not self._running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _wait_until_released(self) -> None:
        while self._is_held:
            if self._released is None:
                self._released = asyncio.get_running_loop().create_future()
            # one waiter that is cancelled must not cancel the others
            await asyncio.shield(self._released)
