"""What user code of this process raised: a line of its log each, with everything that leads to it."""

import asyncio
import logging
import re
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from servd.calls.failures import listen, tell
from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.exceptions import DeployError
from servd.ground.clock import SystemClock
from servd.observability.described import slot
from servd.observability.error_groups import ErrorGroups, ErrorsReport, group_of
from servd.observability.failure import Failure, failure_of
from servd.observability.tracebacks import users_place
from servd.wire.build_messages import BuildOrder
from servd.wire.messages import ReplicaStart

_IDS_SHOWN = 100
_ASKED_WITHIN_S = 5.0
"""For so long after its end it is left to others to ask what ended a task that the start has begun."""
_KNOWS_CONTEXTS = hasattr(asyncio.Task, "get_context")
"""Tasks tell in which context they run, from Python 3.12 on."""

logger = logging.getLogger(__name__)


class Failures:
    """Listens for what user code raises, in all threads of a replica.

    Args:
        wall_time: gives seconds since the epoch.
        groups: where each is counted.
        on_failure: called after each; any thread.
    """

    def __init__(
        self,
        start: ReplicaStart,
        wall_time: Callable[[], float],
        groups: ErrorGroups,
        on_failure: Callable[[], None],
    ) -> None:
        self._start = start
        self._wall_time = wall_time
        self._groups = groups
        self._on_failure = on_failure
        # what no request asked for: the start, hooks, health checks
        self._outside = RequestContext(app_name=start.app)
        self._requests: weakref.WeakKeyDictionary[asyncio.Task[Any], RequestContext] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Failures({self._start.replica_id})"

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear of everything from now on: what is told, what ends a task or a callback of the loop, what ends a thread."""
        listen(self._heard)
        loop.set_exception_handler(self._loop_failed)
        loop.set_task_factory(self._new_task)
        # not where the user's code has put its own
        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = _thread_failed
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = _ignored

    def started(self, loop: asyncio.AbstractEventLoop) -> None:
        """The start is over."""
        # where tasks tell themselves what they belong to, those of requests need not be known
        if _KNOWS_CONTEXTS and loop.get_task_factory() == self._new_task:
            loop.set_task_factory(None)

    def _heard(self, error: BaseException, method: str, requests: Sequence[RequestContext], is_logged: bool) -> None:
        start = self._start
        request = requests[0] if requests[0].request_id else self._outside
        ids = tuple(one.request_id for one in requests if one.request_id)
        failure = failure_of(
            error,
            app=start.app,
            deployment=start.deployment,
            method=method,
            route=request.route,
            at=self._wall_time(),
            request_ids=ids,
            trace_ids=tuple((one.request_id, one.trace.trace_id) for one in requests if one.trace is not None),
        )
        if not is_logged:
            self._log(failure, request)
        self._groups.add(failure)
        self._on_failure()

    def _log(self, failure: Failure, request: RequestContext) -> None:
        ids = failure.request_ids
        others = f" requests={','.join(ids[:_IDS_SHOWN])}" if len(ids) > 1 else ""
        before = current_request.set(request)
        try:
            logger.error(
                "user_code_failed error=%s deployment=%s method=%s%s\n%s",
                failure.id,
                self._start.deployment,
                failure.method,
                others,
                failure.traceback,
            )
        finally:
            current_request.reset(before)

    def _new_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        task = asyncio.Task(coroutine, loop=loop, **options)
        request = current_request.get()
        if request is not NO_REQUEST:
            self._requests[task] = request
        if not request.request_id:
            task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        """One that no request has begun, but a constructor or the like. The interpreter tells of none that is kept."""
        if _is_unasked(task):
            task.get_loop().call_later(_ASKED_WITHIN_S, self._tell_unasked, task)

    def _tell_unasked(self, task: "asyncio.Task[Any]") -> None:
        if _is_unasked(task):
            message = "Task exception was never retrieved"
            self._loop_failed(task.get_loop(), {"message": message, "exception": task.exception(), "task": task})

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or not users_place(error):
            loop.default_exception_handler(context)
        # one that wanted to end the process was told when it was refused
        elif not issubclass(type(error), SystemExit | KeyboardInterrupt):
            tell(error, _name_in(context), self._request_in(context))

    def _request_in(self, context: dict[str, Any]) -> RequestContext:
        task = context.get("task") or context.get("future")
        if not isinstance(task, asyncio.Task):
            return current_request.get()
        if not _KNOWS_CONTEXTS:
            return self._requests.get(task, NO_REQUEST)
        request: RequestContext = task.get_context().get(current_request, NO_REQUEST)  # type: ignore[attr-defined]
        return request


def _is_unasked(task: "asyncio.Task[Any]") -> bool:
    """Whether it has failed, and nobody has asked with what."""
    return bool(getattr(task, "_log_traceback", False))


def _name_in(context: dict[str, Any]) -> str:
    task = context.get("task") or context.get("future")
    if isinstance(task, asyncio.Task):
        return getattr(task.get_coro(), "__qualname__", "") or task.get_name()
    callback = getattr(context.get("handle"), "_callback", None)
    return getattr(callback, "__qualname__", "") or "callback"


def _thread_failed(args: Any) -> None:
    # as the interpreter has it, `sys.exit()` ends a thread in peace
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        tell(args.exc_value, args.thread.name if args.thread is not None else "thread")


def _ignored(args: Any) -> None:
    """What the interpreter goes on from, because it was raised in a finalizer or the like."""
    if args.exc_value is None or not users_place(args.exc_value):
        sys.__unraisablehook__(args)
    else:
        tell(args.exc_value, getattr(args.object, "__qualname__", "") or _name_of_ignored(args.err_msg or ""))


def _name_of_ignored(message: str) -> str:
    """What raised it: since 3.14 the interpreter names a finalizer in the message alone."""
    found = re.search(r"<function (\S+) at ", message)
    return found[1] if found is not None else "finalizer"


def failed_build(order: BuildOrder, error: DeployError) -> ErrorsReport:
    """Logs why the build failed, and gives what the controller keeps of it, under the fork server's id."""
    cause = slot(error, "__cause__")
    failure = failure_of(
        # what user code raised, where it did; else there is more in what was made of it
        cause if cause is not None and users_place(cause) else error,
        app=order.app,
        deployment=order.preload,
        method="__init__" if order.preload else "import",
        at=SystemClock().wall_time(),
    )
    logger.error(
        "build_failed error=%s deployment=%s build=%s\n%s", failure.id, order.preload or "-", order.build_id, error
    )
    return ErrorsReport(order.fork_server_id, (group_of(failure),))
