"""Results of handle calls: one value that is awaited or waited for, or a stream of them.

How this works: a call lives on the loop of the process's caller. Made on that loop's thread with plain arguments it is sent
at once, and awaiting it there awaits the caller's own ticket: no task, no thread hop. Anything else (another thread, another
loop, arguments that are results themselves) goes through a coroutine on that loop.
"""

import asyncio
import concurrent.futures
from asyncio import _get_running_loop
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Any, overload

from servd.calls import pickling
from servd.calls.process import Process, Ticket
from servd.exceptions import NoRouteError, RemoteFailure, RequestCancelledError, UnknownDeploymentError
from servd.ground.clock import SystemClock
from servd.ground.parametrized import Answer, Parametrized

_UNSETTLED = "await a response, or pass it to another call, before it can travel to another process"
_BLOCKS_LOOP = "this would block the event loop: use `await` instead of `.result()`"


class DeploymentResponse(Parametrized[Answer]):
    """The result of a one-step call: awaitable any number of times, in any loop, or waited for with `.result()`.

    Attributes:
        request_id: of the request that the call is made for, else of the call itself; "" once it came from another process.
    """

    __slots__ = ("_error", "_future", "_is_cancelled", "_is_settled", "_process", "_ticket", "_value", "request_id")

    def __init__(
        self,
        process: Process | None,
        ticket: Ticket | None = None,
        future: "asyncio.Future[Any] | concurrent.futures.Future[Any] | None" = None,
        request_id: str = "",
    ) -> None:
        self.request_id = request_id
        self._process = process
        self._ticket = ticket
        self._future = future
        self._is_settled = False
        self._is_cancelled = False
        self._value: Any = None
        self._error: BaseException | None = None

    def __await__(self) -> Generator[Any, None, Answer]:
        if not self._is_settled:
            try:
                yield from self._settle_here()
            except asyncio.CancelledError:
                if not self._is_cancelled or _is_cancelling():
                    raise
                self._settle_as_cancelled()
        return self._outcome()

    def result(self, timeout_s: float | None = None) -> Answer:
        """The value, waited for on this thread; the call's error is raised.

        Raises:
            TimeoutError: nothing after `timeout_s` seconds; the call goes on.
            RuntimeError: on an event-loop thread.
        """
        if _get_running_loop() is not None:
            raise RuntimeError(_BLOCKS_LOOP)
        if not self._is_settled:
            waiting = self._settle_on_its_loop()
            try:
                waiting.result(timeout_s)
            except concurrent.futures.CancelledError:
                self._settle_as_cancelled()
            except TimeoutError:
                if not self._is_settled:
                    raise TimeoutError(f"no result after {timeout_s} s; the call goes on") from None
        return self._outcome()

    def cancel(self) -> None:
        """Take the call back, best effort: awaiting it then raises `RequestCancelledError`. Any thread."""
        self._is_cancelled = True
        if self._is_settled or self._process is None:
            return
        if _get_running_loop() is self._process.loop:
            self._cancel_here()
        else:
            self._process.loop.call_soon_threadsafe(self._cancel_here)

    def cancelled(self) -> bool:
        """Whether `.cancel()` was called; the call may have run to its end all the same."""
        return self._is_cancelled

    async def settled(self) -> "DeploymentResponse[Answer]":
        """This response once it holds its value.

        Raises:
            Exception: the call's error.
        """
        await self
        return self

    @property
    def value(self) -> Answer:
        """Value of a settled response."""
        return self._outcome()

    async def _to_object_ref(self) -> "DeploymentResponse[Answer]":
        """This response, which is the `ObjectRef` that code for Ray Serve asks for by this name."""
        return self

    def _to_object_ref_sync(self, *_args: Any, **_kwargs: Any) -> "DeploymentResponse[Answer]":
        """As `_to_object_ref`, on a thread without event loop. The arguments, of Ray Serve's, change nothing."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._is_settled or self._error is not None:
            raise TypeError(_UNSETTLED)
        return settled_ref, (self._value,)

    def __repr__(self) -> str:
        state = "not awaited" if not self._is_settled else repr(self._error or self._value)
        return f"{type(self).__name__}({state})"

    def _settle_here(self) -> Generator[Any, None, None]:
        """Wait on the running loop; every outcome but a cancellation is kept."""
        assert self._process is not None
        if _get_running_loop() is not self._process.loop:
            yield from asyncio.wrap_future(self._settle_on_its_loop()).__await__()
            return
        try:
            if self._ticket is not None:
                parts = yield from self._ticket.__await__()
                value = pickling.loads(parts)
            else:
                assert self._future is not None
                value = yield from asyncio.wrap_future(self._future).__await__()
        except Exception as error:
            self._keep(None, call_error(error))
        else:
            self._keep(value, None)

    def _settle_on_its_loop(self) -> "concurrent.futures.Future[None]":
        assert self._process is not None
        return asyncio.run_coroutine_threadsafe(self._settle(), self._process.loop)

    async def _settle(self) -> None:
        if not self._is_settled:
            await _Steps(self._settle_here())

    def _settle_as_cancelled(self) -> None:
        if not self._is_settled:
            self._keep(None, RequestCancelledError("the call was cancelled"))

    def _keep(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error = value, error
        self._is_settled = True

    def _outcome(self) -> Answer:
        if not self._is_settled:
            self._settle_as_cancelled()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]

    def _cancel_here(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()
        elif self._future is not None:
            self._future.cancel()


class Ref(DeploymentResponse[Answer]):
    """The result of a two-step or sync call; has all members of a `DeploymentResponse`."""

    __slots__ = ()


class _Steps:
    """A generator of futures as something to await."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, None, None]:
        return self._steps


class DeploymentResponseGenerator(Parametrized[Answer]):
    """The results of a streaming call: `async for` on a loop, `for` on other threads.

    request_id: as a `DeploymentResponse` has it.
    """

    def __init__(
        self,
        process: Process,
        ticket: Ticket | None = None,
        opening: "concurrent.futures.Future[Ticket] | None" = None,
        request_id: str = "",
    ) -> None:
        self.request_id = request_id
        self._process = process
        self._opening = opening
        self._ticket = ticket
        self._items: AsyncIterator[Any] | None = None
        self._is_cancelled = False
        self._is_done = False

    def __aiter__(self) -> "DeploymentResponseGenerator[Answer]":
        return self

    async def __anext__(self) -> Answer:
        if asyncio.get_running_loop() is self._process.loop:
            return await self._next()
        step = asyncio.run_coroutine_threadsafe(self._next_or_end(), self._process.loop)
        found, value = await asyncio.wrap_future(step)
        if not found:
            raise StopAsyncIteration
        return value  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Answer]:
        if _get_running_loop() is not None:
            raise RuntimeError("this would block the event loop: use `async for` instead of `for`")
        return self

    def __next__(self) -> Answer:
        if _get_running_loop() is not None:
            raise RuntimeError("this would block the event loop: use `async for` instead of `for`")
        step = asyncio.run_coroutine_threadsafe(self._next_or_end(), self._process.loop)
        found, value = step.result()
        if not found:
            raise StopIteration
        return value  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """Take the call back, best effort: the next step raises `RequestCancelledError`. Any thread."""
        if not self._is_done:
            self._is_cancelled = True
            self._end_here()

    def cancelled(self) -> bool:
        """Whether `.cancel()` was called before the end."""
        return self._is_cancelled

    async def _to_object_ref_gen(self) -> "RefGenerator[Answer]":
        """The results as `ObjectRef`s, as Ray Serve's method of this name gives them."""
        return RefGenerator(self)

    def _to_object_ref_gen_sync(self, *_args: Any, **_kwargs: Any) -> "RefGenerator[Answer]":
        """As `_to_object_ref_gen`, on a thread without event loop. The arguments, of Ray Serve's, change nothing."""
        return RefGenerator(self)

    def __await__(self) -> Generator[Any, None, Any]:
        raise TypeError("a streaming call has many results: use `async for`, not `await`")

    def result(self, timeout_s: float | None = None) -> Any:  # noqa: ARG002
        """Refused.

        Raises:
            TypeError: always.
        """
        raise TypeError("a streaming call has many results: iterate over them, there is no `.result()`")

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a streaming response cannot travel to another process: iterate over it here")

    def __del__(self) -> None:
        # nobody will read the rest: free the replica's slot
        if not self._is_done and not self._process.loop.is_closed():
            self._end_here()

    async def _next(self) -> Answer:
        if self._is_cancelled:
            raise RequestCancelledError("the call was cancelled")
        try:
            if self._items is None:
                if self._ticket is None:
                    assert self._opening is not None
                    self._ticket = await asyncio.wrap_future(self._opening)
                self._items = self._ticket.__aiter__()
            return pickling.loads(await self._items.__anext__())  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self._is_done = True
            if not self._was_cancelled() or _is_cancelling():
                raise
            failure: Exception = RequestCancelledError("the call was cancelled")
        except StopAsyncIteration:
            self._is_done = True
            raise
        except Exception as error:
            self._is_done = True
            failure = call_error(error)
        # outside the block, so the remote traceback stays the cause
        raise failure

    def _was_cancelled(self) -> bool:
        return self._is_cancelled

    async def _next_or_end(self) -> tuple[bool, Any]:
        # StopAsyncIteration and StopIteration mean something else to futures
        try:
            return True, await self._next()
        except StopAsyncIteration:
            return False, None

    def _end_here(self) -> None:
        loop, ticket, opening = self._process.loop, self._ticket, self._opening
        if ticket is not None:
            loop.call_soon_threadsafe(ticket.cancel)
        elif opening is not None:
            opening.add_done_callback(lambda done: loop.call_soon_threadsafe(_cancel_opened, done))


class RefGenerator(Parametrized[Answer]):
    """The results of a streaming call, each as a response that holds it: `async for` on a loop, `for` on other threads."""

    def __init__(self, results: DeploymentResponseGenerator[Answer]) -> None:
        self._results = results

    def __aiter__(self) -> "RefGenerator[Answer]":
        return self

    async def __anext__(self) -> "Ref[Answer]":
        return settled_ref(await anext(self._results))

    def __iter__(self) -> "RefGenerator[Answer]":
        return self

    def __next__(self) -> "Ref[Answer]":
        return settled_ref(next(self._results))


def _cancel_opened(opening: "concurrent.futures.Future[Ticket]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().cancel()


def call_error(error: Exception) -> Exception:
    """What the user gets for an error of the process's caller: the called code's own exception, if it raised."""
    if isinstance(error, RemoteFailure):
        return pickling.load_exception(error.parts)
    if type(error) is NoRouteError:
        return UnknownDeploymentError(str(error))
    return error


def _is_cancelling() -> bool:
    """Whether the running task itself is being cancelled, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def settled_ref(value: Any) -> Ref:
    """A response that holds its value."""
    made = Ref(None)
    made._keep(value, None)
    return made


@overload
def get(refs: DeploymentResponse[Answer], timeout: float | None = None) -> Answer: ...
@overload
def get(refs: Sequence[DeploymentResponse[Answer]], timeout: float | None = None) -> list[Answer]: ...
def get(refs: Any, timeout: float | None = None) -> Any:
    """Value of a response, or values of a list of them, waited for on this thread.

    Raises:
        TimeoutError: not all of it within `timeout` seconds.
        RuntimeError: on an event-loop thread.
    """
    if _get_running_loop() is not None:
        raise RuntimeError("this would block the event loop: use `await` instead of `get`")
    if isinstance(refs, list | tuple):
        now = SystemClock().now
        deadline = None if timeout is None else now() + timeout
        return [get(item, None if deadline is None else max(0.0, deadline - now())) for item in refs]
    if not hasattr(refs, "result"):
        kind = type(refs).__name__
        raise TypeError(f"`get` takes a response of a handle call, or a list of them, got {kind}")
    return refs.result(timeout)
