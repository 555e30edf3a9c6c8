"""Handles: how code calls deployments, in one step (`await h.remote(x)`) or in the older two."""

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from servd.calls import pickling
from servd.calls.arguments import needs_waiting, resolve
from servd.calls.broadcast_response import DeploymentBroadcastResponse, outcome_of
from servd.calls.method_types import CallAttribute, TypedCalls, name_of_method
from servd.calls.process import Process, Ticket, installed_process, local_process
from servd.calls.request_context import MAX_DEPTH, NO_REQUEST, RequestContext, current_request
from servd.calls.response import DeploymentResponse, DeploymentResponseGenerator, Ref, call_error
from servd.exceptions import NoRouteError, RequestCancelledError, ServdError
from servd.ground.absent import check_serializations
from servd.ground.ids import DeploymentID, random_uuid
from servd.ground.parametrized import Served
from servd.ground.settings import variable

__all__ = [
    "DeploymentBroadcastResponse",
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "RayServeDeploymentHandle",
    "RayServeHandle",
    "RayServeSyncHandle",
]

Self = TypeVar("Self", bound="_Handle")

_get_ident = threading.get_ident
_WAITED_FOR = (DeploymentResponse, asyncio.Future)


class _Handle:
    """What all handles share: the deployment, the method and the options of a call."""

    __slots__ = ("_full_name", "_id", "_method", "_model_id", "_process", "_session_id", "_stream")

    def __init__(
        self,
        deployment: DeploymentID,
        *,
        method_name: str = "__call__",
        multiplexed_model_id: str = "",
        stream: bool = False,
        session_id: str = "",
    ) -> None:
        self._id = deployment
        self._full_name = deployment.full_name
        self._method = method_name
        self._model_id = multiplexed_model_id
        self._stream = stream
        self._session_id = session_id
        self._process = local_process(deployment.app)

    @property
    def deployment_name(self) -> str:
        """Full name `<app>_<name>`."""
        return self._full_name

    @property
    def app_name(self) -> str:
        """Name of the application."""
        return self._id.app

    @property
    def deployment_id(self) -> DeploymentID:
        """Both names, bare."""
        return self._id

    def options(
        self: Self,
        *,
        method_name: str | Callable[..., Any] | None = None,
        multiplexed_model_id: str | None = None,
        stream: bool | None = None,
        use_new_handle_api: bool | None = None,
        session_id: str | None = None,
        request_serialization: str | None = None,
        response_serialization: str | None = None,
        _by_reference: bool | None = None,
        _prefer_local_routing: bool | None = None,
    ) -> Self:
        """A copy of this handle with other options; they hold for this copy's calls only.

        Args:
            method_name: the method, by its name or as `Class.method`.
            session_id: calls of one session go to one replica where the deployment's router is `consistent_hash`.
            use_new_handle_api: True: a `DeploymentHandle`, whatever this one is, for applications of release 2.7.
            request_serialization, response_serialization, _by_reference, _prefer_local_routing: no effect on values.

        Raises:
            TypeError: `method_name` is no string and has no name, or `session_id` is no string.
            ValueError: a serialization that does not exist.
        """
        check_serializations(request_serialization, response_serialization)
        if session_id is not None and not isinstance(session_id, str):
            raise TypeError(f"session_id is a string, got {session_id!r}: `str(...)` makes one of it")
        if method_name is not None and not isinstance(method_name, str):
            method_name = name_of_method(method_name)
        return (DeploymentHandle if use_new_handle_api else type(self))(  # type: ignore[return-value]
            self._id,
            method_name=self._method if method_name is None else method_name,
            multiplexed_model_id=self._model_id if multiplexed_model_id is None else multiplexed_model_id,
            stream=self._stream if stream is None else stream,
            session_id=self._session_id if session_id is None else session_id,
        )

    def __getattr__(self: Self, name: str) -> Self:
        # copy, pickle, inspect and notebooks look for special names on everything
        if name.startswith("__") or (name.startswith("_") and name.endswith("_")):
            raise AttributeError(name)
        return self.options(method_name=name)

    if not TYPE_CHECKING:
        __call__ = CallAttribute()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__reduce__() == self.__reduce__()

    def __hash__(self) -> int:
        return hash((type(self), self._id, self._method))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (
            type(self),
            self._id.app,
            self._id.name,
            self._method,
            self._model_id,
            self._stream,
            *((self._session_id,) if self._session_id else ()),
        )

    def __repr__(self) -> str:
        method = "" if self._method == "__call__" else f", method_name={self._method!r}"
        return f"{type(self).__name__}({self._full_name!r}{method})"

    def _start(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        kind: type[DeploymentResponse],
        sent: threading.Event | None = None,
    ) -> Any:
        """The call on its way, as a `kind` or a generator. sent: set when a replica is chosen, it failed, or it must wait."""
        to, context = self._way()
        waits = False
        for item in (*args, *kwargs.values()) if kwargs else args:
            waits = waits or isinstance(item, _WAITED_FOR)
        parts: list[Any] = []
        if not waits:
            try:
                parts = pickling.dumps((args, kwargs))
            except TypeError:
                # a result that is not there yet, or a request, somewhere inside: those can be resolved
                waits = needs_waiting(args, kwargs, _is_response)
                if not waits:
                    raise
        if waits and sent is not None:
            sent.set()  # what it waits for may be for the caller to bring about
        made_at = context.cancellations
        is_here = _get_ident() == to.thread_id
        if not waits and is_here:
            ticket = self._submit(to, args, kwargs, parts, context)
            if self._stream:
                return DeploymentResponseGenerator(to, ticket, request_id=context.request_id)
            return kind(to, ticket, request_id=context.request_id)
        if self._stream:
            opened = asyncio.run_coroutine_threadsafe(self._open(to, args, kwargs, parts, context, made_at), to.loop)
            return DeploymentResponseGenerator(to, opening=opened, request_id=context.request_id)
        fetch = self._fetch(sent, to, args, kwargs, parts, context, made_at)
        future: Any = to.loop.create_task(fetch) if is_here else asyncio.run_coroutine_threadsafe(fetch, to.loop)
        return kind(to, future=future, request_id=context.request_id)

    def _call_all(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DeploymentBroadcastResponse:
        to, context = self._way()
        parts = [] if needs_waiting(args, kwargs, _is_response) else pickling.dumps((args, kwargs))
        outcomes = self._outcomes(to, method, args, kwargs, parts, context, context.cancellations)
        return DeploymentBroadcastResponse(asyncio.run_coroutine_threadsafe(outcomes, to.loop))

    async def _outcomes(
        self,
        to: Process,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parts: list[Any],
        context: RequestContext,
        made_at: int,
    ) -> list[Any]:
        parts = await _sendable(args, kwargs, parts, context, made_at)
        try:
            tickets = await to.caller.submit_to_all(self._full_name, method, parts, context, context.deadline)
        except NoRouteError as error:
            raise call_error(error) from None
        return await asyncio.gather(*map(outcome_of, tickets))

    def _way(self) -> tuple[Process, RequestContext]:
        """The process's way to replicas, and the request that a call is made for."""
        to = self._process or installed_process() or _connected()
        context = _named(current_request.get())
        if context.depth >= MAX_DEPTH:
            raise ServdError(f"{self._full_name}: handle calls are nested deeper than {MAX_DEPTH}")
        return to, context

    def _submit(
        self, to: Process, args: tuple[Any, ...], kwargs: dict[str, Any], parts: list[Any], context: RequestContext
    ) -> Ticket:
        return to.caller.submit_call(
            self._full_name,
            self._method,
            parts,
            context,
            stream=self._stream,
            model_id=self._model_id or context.multiplexed_model_id,
            deadline=context.deadline,
            session_id=self._session_id,
            arguments=(args, kwargs),
        )

    async def _open(
        self,
        to: Process,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parts: list[Any],
        context: RequestContext,
        made_at: int,
    ) -> Ticket:
        return self._submit(to, args, kwargs, await _sendable(args, kwargs, parts, context, made_at), context)

    async def _fetch(self, sent: threading.Event | None, *call: Any) -> Any:
        try:
            ticket = await self._open(*call)
            if sent is not None:
                ticket.when_sent(sent.set)
            return pickling.loads(await ticket)
        finally:
            if sent is not None:
                sent.set()


async def _sendable(
    args: tuple[Any, ...], kwargs: dict[str, Any], parts: list[Any], context: RequestContext, made_at: int
) -> list[Any]:
    """The pickled arguments, which may have had to wait for the results of other calls."""
    if not parts:
        args, kwargs = await resolve(args, kwargs, _is_response)
        parts = pickling.dumps((args, kwargs))
    if context.cancellations != made_at:
        raise RequestCancelledError("the request for which the call was made was cancelled before it was sent")
    return parts


def _named(context: RequestContext) -> RequestContext:
    """The request that a call is made for; a call that is made for none is a request of its own."""
    if context.request_id:
        return context
    if context is NO_REQUEST:
        return RequestContext(random_uuid())
    # a start-up: all calls that it makes go by one id
    context.request_id = random_uuid()
    return context


def _connected() -> Process:
    # replicas have a caller from their start: only drivers load what it takes to connect
    from servd.calls.connection import connected_process

    return connected_process()


def _is_response(value: Any) -> bool:
    return isinstance(value, DeploymentResponse)


def _restore(
    kind: type[Self], app: str, name: str, method: str, model_id: str, stream: bool, session_id: str = ""
) -> Self:
    """The handle behind `_Handle.__reduce__`."""
    deployment = DeploymentID(name, app)
    return kind(deployment, method_name=method, multiplexed_model_id=model_id, stream=stream, session_id=session_id)


class DeploymentHandle(TypedCalls[Served], _Handle):  # type: ignore[misc] # narrower, for checkers only
    """One-step handle: `value = await h.remote(x)`. `DeploymentHandle[Model]` says whose methods `options` takes."""

    __slots__ = ()

    def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponse[Any]:
        """Call the deployment.

        Returns:
            A `DeploymentResponse`; with `options(stream=True)` a `DeploymentResponseGenerator`.

        Raises:
            TypeError: an argument cannot be pickled.
            ServdError: this process has no way to Serve, or calls are nested too deep.
        """
        return self._start(args, kwargs, DeploymentResponse)  # type: ignore[no-any-return]

    @property
    def broadcast(self) -> "Broadcast":
        """`broadcast(method_name, *args, **kwargs)` calls a method of every replica that runs now."""
        return Broadcast(self)


class Broadcast:
    """Calls all replicas of a handle's deployment; for all else it is the handle to a method that is named `broadcast`."""

    __slots__ = ("_handle",)

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __call__(self, method_name: str, *args: Any, **kwargs: Any) -> DeploymentBroadcastResponse:
        """Call it on each, beside the waiting line and beyond `max_ongoing_requests`: for control, not for load.

        Raises:
            TypeError: an argument cannot be pickled.
            ServdError: this process has no way to Serve, or calls are nested too deep.
        """
        return self._handle._call_all(method_name, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle.options(method_name="broadcast"), name)


class RayServeHandle(_Handle):
    """Two-step handle: `ref = await h.remote(x)`, then `value = await ref`."""

    __slots__ = ()

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the deployment.

        Returns:
            A task of a `Ref`; on a thread without event loop the `Ref` itself; with `options(stream=True)` a
            `DeploymentResponseGenerator`.
        """
        started = self._start(args, kwargs, Ref)
        loop = asyncio._get_running_loop()
        if loop is None or self._stream:
            return started
        return loop.create_task(_in_two_steps(started))


class RayServeDeploymentHandle(RayServeHandle):
    """What a bound deployment is in constructors that ask for it by this name."""

    __slots__ = ()


class RayServeSyncHandle(DeploymentHandle[Served]):
    """Handle for code without event loop: `ref = h.remote(x)`, then `ref.result()` or `servd.get(ref)`."""

    __slots__ = ()

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the deployment.

        Returns:
            A `Ref`, once a replica is chosen (at once on an event-loop thread, and with the result of another call);
            with `options(stream=True)` a `DeploymentResponseGenerator`.
        """
        if self._stream or asyncio._get_running_loop() is not None:
            return self._start(args, kwargs, Ref)
        sent = threading.Event()
        started = self._start(args, kwargs, Ref, sent)
        sent.wait()
        return started


async def _in_two_steps(ref: Ref) -> Ref:
    return ref


_STYLES: dict[str, type[_Handle]] = {
    "DeploymentHandle": DeploymentHandle,
    "RayServeHandle": RayServeHandle,
    "RayServeSyncHandle": RayServeSyncHandle,
    "RayServeDeploymentHandle": RayServeDeploymentHandle,
}


def bound_handle(deployment: DeploymentID, style: str) -> _Handle:
    """The handle that stands for a bound deployment in a constructor.

    Args:
        style: the handle type of the parameter's annotation; "" = none: as `SERVD_LEGACY_HANDLES` has it (1: two steps).
    """
    if not style and variable("DEPLOYMENT_HANDLE_IS_SYNC", "0") == "1":
        style = "RayServeSyncHandle"
    if not style and variable("LEGACY_HANDLES", "0") == "1":
        style = "RayServeDeploymentHandle"
    return _STYLES[style or "DeploymentHandle"](deployment)
