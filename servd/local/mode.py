"""`run(local=True)`: a whole application in the calling process, without daemon and sockets, for unit tests.

Arguments and results are pickled on the way, and user code runs as in a replica, so handles and errors are the same.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from types import AsyncGeneratorType
from typing import Any

from servd.app.built import BuiltApplication
from servd.app.deployment import Deployment
from servd.app.ingress import changes_undone
from servd.calls import pickling
from servd.calls.arguments import NO_ARGUMENTS, Arguments
from servd.calls.process import Process, set_local_process
from servd.calls.replica_context import ReplicaContext, local_replica, playing_template_of, refuse_in_template
from servd.calls.request_context import RequestContext, current_request
from servd.exceptions import NoRouteError, RemoteFailure, ServdError
from servd.ground.ids import DeploymentID, ReplicaID, full_name_of, random_letters
from servd.local.slots import LocalSlots

# the one place outside `replica/` that runs user code: a process that is driver and replicas at once
from servd.replica.instances import has_hooks_on_thread, new_instance
from servd.replica.methods import takes_rank
from servd.replica.user_callable import UserCallable

_END = object()
_CALLING = "calling a handle or using the client"
_CANCEL_LIMIT_S = 5.0
_made: "dict[int, list[LocalTicket]]" = {}
"""Calls that were made for each request that runs, by the identity of its context."""


class LocalTicket:
    """One call inside the process."""

    def __init__(
        self, context: RequestContext, task: "asyncio.Task[Any] | None", items: AsyncIterator[Any] | None = None
    ) -> None:
        self._context, self._task, self._items = context, task, items

    def __await__(self) -> Generator[Any, None, Any]:
        assert self._task is not None
        try:
            # who waits is cancelled at once, whatever the handler makes of it
            return (yield from asyncio.shield(self._task).__await__())
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        assert self._items is not None
        return self._items

    def when_sent(self, told: Callable[[], None]) -> None:
        """There is always a replica."""
        told()

    def cancel(self) -> None:
        """Cancel the handler, and the calls that it has made, whatever it makes of that; a stream ends where it is."""
        self._context.cancellations += 1
        for made in _made.get(id(self._context), ()):
            made.cancel()
        if self._task is not None:
            self._task.cancel()
        elif isinstance(self._items, AsyncGeneratorType) and not self._items.ag_running:
            self._closing = asyncio.get_running_loop().create_task(self._items.aclose())


class LocalCaller:
    """Sends calls to the deployments of one application in this process."""

    def __init__(self) -> None:
        self._replicas: dict[str, tuple[UserCallable, ReplicaContext, LocalSlots]] = {}
        self.app_name = self.ingress_name = ""
        self.route_prefix: str | None = None

    async def start(self, built: BuiltApplication) -> None:
        """Construct every deployment, dependencies first; whatever user code raises comes out."""
        self.app_name, self.ingress_name, self.route_prefix = built.name, built.ingress_name, built.route_prefix
        for name, deployment in built.deployments.items():
            target = DeploymentID(name, built.name)
            about = ReplicaContext(ReplicaID(target, random_letters(6)))
            threads = deployment.config.max_sync_threads
            replica = UserCallable(deployment, about, max_sync_threads=threads)
            with changes_undone(deployment.func_or_class):
                await asyncio.create_task(self._construct(replica, about, deployment))
            config = deployment.config
            limits = config.max_concurrent_queries, config.max_queued_requests, config.backpressure
            self._replicas[target.full_name] = (
                replica,
                about,
                LocalSlots(target.full_name, str(about.replica_id), *limits),
            )

    async def close(self) -> None:
        """End every deployment, ingress first."""
        for replica, about, _ in reversed(self._replicas.values()):
            await asyncio.create_task(self._as_replica(about, replica.close()))
        self._replicas.clear()

    def submit_call(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        *,
        stream: bool = False,
        model_id: str = "",
        deadline: float | None = None,
        session_id: str = "",  # noqa: ARG002 - there is one replica
        arguments: Arguments = NO_ARGUMENTS,  # noqa: ARG002
    ) -> LocalTicket:
        """Call a method; the deadline bounds it."""
        refuse_in_template(_CALLING)
        own = self._replicas.get(deployment)
        inner = RequestContext(
            context.request_id or random_letters(10),
            context.route,
            own[1].app_name if own is not None else "",
            model_id,
            deadline,
            context.depth + 1,
            (*context.ancestors, str(own[1].replica_id)) if own is not None else (),
            context.pattern,
        )
        if stream:
            ticket = LocalTicket(inner, None, self._stream(deployment, method, parts, context, inner))
        else:
            call = self._call(deployment, method, parts, context, inner)
            ticket = LocalTicket(inner, asyncio.get_running_loop().create_task(call))
        if id(context) in _made:
            _made[id(context)].append(ticket)
        return ticket

    async def submit_to_all(
        self, deployment: str, method: str, parts: list[Any], context: RequestContext, deadline: float | None
    ) -> list[LocalTicket]:
        """There is one replica."""
        refuse_in_template(_CALLING)
        self._find(deployment)
        return [self.submit_call(deployment, method, parts, context, deadline=deadline)]

    async def _call(
        self, deployment: str, method: str, parts: list[Any], outer: RequestContext, context: RequestContext
    ) -> Any:
        replica, about, slots = self._find(deployment)
        async with asyncio.timeout_at(context.deadline), _slot(slots, outer, context):
            current_request.set(context)
            local_replica.set(about)
            try:
                args, kwargs = pickling.loads(parts)
                return pickling.dumps(await replica.call(method, args, kwargs, context))
            except Exception as error:
                raise RemoteFailure(pickling.dump_exception(error)) from error

    async def _stream(
        self, deployment: str, method: str, parts: list[Any], outer: RequestContext, context: RequestContext
    ) -> AsyncIterator[Any]:
        items: asyncio.Queue[Any] = asyncio.Queue(1)
        made = self._make_items(deployment, method, parts, outer, context, items)
        # a task of its own: whoever asks for the next item does so in a context of his own, a generator lives in one
        task = asyncio.get_running_loop().create_task(made)
        try:
            while (item := await items.get()) is not _END:
                yield item
            await task
        finally:
            task.cancel()

    async def _make_items(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        outer: RequestContext,
        context: RequestContext,
        items: "asyncio.Queue[Any]",
    ) -> None:
        try:
            replica, about, slots = self._find(deployment)
            args, kwargs = pickling.loads(parts)
            async with _slot(slots, outer, context):
                current_request.set(context)
                local_replica.set(about)
                try:
                    async with aclosing(replica.stream(method, args, kwargs, context)) as found:
                        async for item in found:
                            await items.put(pickling.dumps(item))
                except Exception as error:
                    raise RemoteFailure(pickling.dump_exception(error)) from error
        finally:
            # of a task that was cancelled nobody hears the end
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                await items.put(_END)

    @asynccontextmanager
    async def ingress(self, context: RequestContext) -> AsyncIterator[UserCallable]:
        """The ingress, with a slot for one HTTP request or WebSocket, which it is told to serve.

        Raises:
            ServdError: the application has ended. BackPressureError: too many wait.
        """
        replica, about, slots = self._find(full_name_of(self.app_name, self.ingress_name))
        context.app_name, context.ancestors = about.app_name, (about.replica_tag,)
        async with _slot(slots, RequestContext(), context):
            current_request.set(context)
            local_replica.set(about)
            yield replica

    def _find(self, deployment: str) -> tuple[UserCallable, ReplicaContext, LocalSlots]:
        if deployment not in self._replicas:
            raise NoRouteError(f"deployment {deployment} does not exist")
        return self._replicas[deployment]

    async def _construct(self, replica: UserCallable, about: ReplicaContext, deployment: Deployment) -> None:
        local_replica.set(about)
        made, user_config = None, deployment.user_config
        if deployment.config.preload:
            # what a daemon's template refuses fails in tests too
            with playing_template_of(deployment.name):
                made = await new_instance(
                    deployment, replica.threads.run_first if has_hooks_on_thread(deployment) else None
                )
        await replica.construct(made)
        rank = {"rank": about.rank} if takes_rank(type(about.servable_object)) else {}
        if user_config is not None or rank:
            await replica.reconfigure(user_config, **rank)
        check = replica.health_check
        if check is not None:
            result = check()
            if asyncio.iscoroutine(result):
                await result

    @staticmethod
    async def _as_replica(about: ReplicaContext, work: Awaitable[None]) -> None:
        local_replica.set(about)
        await work


@asynccontextmanager
async def _slot(slots: LocalSlots, outer: RequestContext, context: RequestContext) -> AsyncIterator[None]:
    """Hold a slot for a request; when it is cancelled, so are the calls it made."""
    await slots.take(outer)
    _made[id(context)] = []
    try:
        yield
    except asyncio.CancelledError:
        for ticket in _made[id(context)]:
            ticket.cancel()
        raise
    finally:
        del _made[id(context)]
        context.end()
        slots.release()


class LocalRuns:
    """Applications that run in this process, by name, on a loop in a thread of their own."""

    def __init__(self) -> None:
        self._callers: dict[str, LocalCaller] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, built: BuiltApplication, caller: LocalCaller) -> None:
        """Start the application; an earlier one of that name is ended. `caller` as `prepare` gave it."""
        loop = self._started_loop()
        try:
            asyncio.run_coroutine_threadsafe(caller.start(built), loop).result()
        except BaseException:
            self.delete(built.name)
            raise

    def prepare(self, name: str) -> LocalCaller:
        """Make handles to the application stay here; before it is built."""
        if self._loop is not None and asyncio._get_running_loop() is self._loop:
            raise ServdError("code of a local application cannot start one: it would wait for itself")
        self.delete(name)
        loop = self._started_loop()
        caller = self._callers[name] = LocalCaller()
        set_local_process(name, Process(caller, loop, _thread_of(loop)))
        return caller

    def ingress_of(self, name: str) -> str:
        """Bare name of an application's ingress, "" when there is no such application here."""
        caller = self._callers.get(name)
        return caller.ingress_name if caller is not None else ""

    def caller_of(self, name: str) -> tuple[LocalCaller, asyncio.AbstractEventLoop]:
        """What sends requests to an application, and the loop on which it does.

        Raises:
            ServdError: there is no such application here.
        """
        if name not in self._callers or self._loop is None:
            raise ServdError(f"no application {name!r} runs in this process any more")
        return self._callers[name], self._loop

    def delete(self, name: str) -> bool:
        """End an application; False when there is none of that name."""
        caller = self._callers.pop(name, None)
        if caller is None or self._loop is None:
            return False
        asyncio.run_coroutine_threadsafe(caller.close(), self._loop).result()
        set_local_process(name, None)
        return True

    def close(self) -> None:
        """End all applications and the loop."""
        for name in list(self._callers):
            self.delete(name)
        if self._loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _started_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="servd-local", daemon=True)
            self._thread.start()
        return self._loop


async def _end_others() -> None:
    """Cancel what still runs on this loop: whoever waits for it, on whatever thread, hears so."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_CANCEL_LIMIT_S)


def _thread_of(loop: asyncio.AbstractEventLoop) -> int:
    async def ident() -> int:
        return threading.get_ident()

    return asyncio.run_coroutine_threadsafe(ident(), loop).result()


RUNS = LocalRuns()
"""The local applications of this process."""
