"""Items that wait for one batched function: how batches form, run, and hand out what comes of them."""

import asyncio
import inspect
import numbers
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from servd.app.batch_measures import all_queues, measures_of
from servd.app.batch_options import BatchOptions
from servd.calls import traced
from servd.calls.failures import tell_of_batch
from servd.calls.request_context import RequestContext, current_request
from servd.exceptions import ServdError
from servd.ground.clock import SystemClock
from servd.observability import spans
from servd.observability.described import for_future, summary_of

# a loop's own clock stands still within a turn
_now = SystemClock().now


class StreamEnd:
    """Stands for the end of a stream. Not an object: decorated functions travel by value, and it would become another."""


class BatchCall:
    """One caller's item: single values for the parameters.

    key: which parameters were passed, and the request's model; a batch has one of each. stream: its elements, for generators.
    waiting: where in which trace it came, None for most.
    """

    __slots__ = ("args", "future", "key", "kwargs", "request", "size", "stream", "waiting")

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        future: "asyncio.Future[Any]",
        size: float,
        streams: bool,
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.future = future
        self.size = size
        self.request = current_request.get()
        self.waiting = traced.waiting() if spans.has_met_traces else None
        self.key = len(args), tuple(sorted(kwargs)) if kwargs else (), self.request.multiplexed_model_id
        self.stream: asyncio.Queue[Any] | None = asyncio.Queue() if streams else None

    @property
    def is_wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self.future.cancelled()


class BatchQueue:
    """Items that wait for one function or bound method; batches are formed in order of arrival.

    Items of another event loop (a thread's own, or the next `asyncio.run`) wait apart: a batch belongs to one loop.
    """

    def __init__(self, function: Callable[..., Any], options: BatchOptions) -> None:
        self._function = function
        self._options = options
        self._name = getattr(function, "func", function).__qualname__
        self._streams = inspect.isasyncgenfunction(function)
        self._waiting: list[BatchCall] = []
        self._arrivals: list[float] = []
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._elsewhere: dict[asyncio.AbstractEventLoop, BatchQueue] = {}
        self._measures = measures_of(self._name)
        self._measures.queues.add(self)

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"BatchQueue({self._name}, waiting={len(self._waiting)}, running={len(self._running)})"

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchCall:
        """Queue one call; its future gets the result."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                return self._on(loop).add(args, kwargs)
            self._loop = loop
        measure = self._options.batch_size_fn
        size = 1 if measure is None else self._measured(measure, next(iter((*args, *kwargs.values())), None))
        call = BatchCall(args, kwargs, loop.create_future(), size, self._streams)
        self._waiting.append(call)
        self._arrivals.append(loop.time())
        self._schedule()
        return call

    def _measured(self, measure: Callable[[list[Any]], Any], item: Any) -> float:
        """The size of one item as the user's function has it: a number of at least 0, since sizes are added up."""
        size = measure([item])
        if not isinstance(size, numbers.Real) or not float(size) >= 0:
            raise TypeError(f"batch_size_fn must give a number of at least 0, it gave {size!r}")
        if float(size) > self._options.max_batch_size:
            limit = self._options.max_batch_size
            raise RuntimeError(f"{self._name}: an item of size {size} fits into no batch, max_batch_size is {limit}")
        return float(size)

    def _on(self, loop: asyncio.AbstractEventLoop) -> "BatchQueue":
        found = self._elsewhere.get(loop)
        if found is None:
            # nothing runs on a closed loop again
            self._elsewhere = {other: queue for other, queue in self._elsewhere.items() if not other.is_closed()}
            found = self._elsewhere[loop] = BatchQueue(self._function, self._options)
        return found

    def forget(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin anew where this loop was the first: it is closed, and what waits on it waits for ever."""
        self._elsewhere.pop(loop, None)
        if self._loop is loop:
            self._loop = self._timer = None
            self._is_due = False
            self._waiting, self._arrivals, self._running = [], [], set()

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._start_batches)

    def _start_batches(self) -> None:
        """Start every batch that is full or whose oldest item waited long enough."""
        self._is_due = False
        self._drop_unwanted()
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._running) < self._options.max_concurrent_batches:
            chosen = self._ready(loop.time())
            if not chosen:
                if self._timer is not None:
                    self._timer.cancel()
                due = self._arrivals[0] + self._options.batch_wait_timeout_s
                self._timer = loop.call_at(due, self._schedule)
                return
            batch = [self._waiting[index] for index in chosen]
            self._measures.sizes.add(len(batch))
            self._measures.waits_ms.add(1000 * max(loop.time() - self._arrivals[chosen[0]], 0.0))
            if chosen[-1] < len(chosen):
                del self._waiting[: len(chosen)], self._arrivals[: len(chosen)]
            else:
                for index in reversed(chosen):
                    del self._waiting[index], self._arrivals[index]
            task = loop.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._schedule()

    def _drop_unwanted(self) -> None:
        kept = [i for i, call in enumerate(self._waiting) if call.is_wanted]
        self._waiting = [self._waiting[i] for i in kept]
        self._arrivals = [self._arrivals[i] for i in kept]

    def _ready(self, now: float) -> Sequence[int]:
        """Places of the next batch: one key, full or its oldest item waited long enough; empty when none is ready."""
        limit = self._options.max_batch_size
        first = self._waiting[0].key
        size: float = 0
        # nearly always all are of one key
        for index, call in enumerate(self._waiting):
            if call.key != first:
                return self._ready_of_several(now)
            size += call.size
            if size >= limit:
                return range(index if size > limit and index else index + 1)
        is_due = now >= self._arrivals[0] + self._options.batch_wait_timeout_s
        return range(len(self._waiting) if is_due else 0)

    def _ready_of_several(self, now: float) -> Sequence[int]:
        limit = self._options.max_batch_size
        groups: dict[Any, list[int]] = {}
        sizes: dict[Any, float] = {}
        full = set()
        for index, call in enumerate(self._waiting):
            group = groups.setdefault(call.key, [])
            size = sizes.get(call.key, 0) + call.size
            if call.key in full:
                continue
            if not group or size <= limit:
                group.append(index)
                sizes[call.key] = size
            if size >= limit:
                full.add(call.key)
        for key, group in groups.items():
            if key in full or now >= self._arrivals[group[0]] + self._options.batch_wait_timeout_s:
                return group
        return ()

    async def _run(self, batch: list[BatchCall]) -> None:
        request = _request_of(batch)
        if spans.has_met_traces:
            request = traced.begun_batch(request, self._name, [call.waiting for call in batch])
        current_request.set(request)
        began = _now()
        # code that catches everything must not end the queue, so neither may its cancellation
        try:
            if self._streams:
                await self._run_stream(batch)
            else:
                await self._run_once(batch)
        except BaseException as error:
            failure = (
                error if issubclass(type(error), Exception) else ServdError(f"the batch was ended: {summary_of(error)}")
            )
            if not issubclass(type(error), asyncio.CancelledError) or not _is_deserted(batch):
                tell_of_batch(failure, self._name, [call.request for call in batch])
            for call in batch:
                _fail(call, failure)
        finally:
            self._measures.runs_ms.add(1000 * (_now() - began))
            request.end()

    async def _run_once(self, batch: list[BatchCall]) -> None:
        try:
            results = await _called(self._function, batch)
            _check_length(self._name, results, batch)
        except Exception as error:
            if self._options.on_error == "split" and len(batch) > 1:
                middle = len(batch) // 2
                await self._run_once(batch[:middle])
                await self._run_once(batch[middle:])
                return
            tell_of_batch(error, self._name, [call.request for call in batch])
            for call in batch:
                _fail(call, error)
            return
        for call, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                _fail(call, result)
            elif not call.future.done():
                call.future.set_result(result)

    async def _run_stream(self, batch: list[BatchCall]) -> None:
        task = asyncio.current_task()
        assert task is not None
        for call in batch:
            # a generator that nobody listens to holds the queue for nothing
            call.future.add_done_callback(lambda _: task.cancel() if _is_deserted(batch) else None)
        try:
            async with aclosing(_called(self._function, batch)) as steps:
                async for step in steps:
                    _check_length(self._name, step, batch)
                    for call, element in zip(batch, step, strict=True):
                        assert call.stream is not None
                        if _ends(element):
                            _finish(call)
                        elif not call.future.done():
                            call.stream.put_nowait(element)
                    if all(call.future.done() for call in batch):
                        break
        finally:
            for call in batch:
                if call.stream is not None:
                    call.stream.put_nowait(StreamEnd)
        for call in batch:
            _finish(call)


def _is_deserted(batch: list[BatchCall]) -> bool:
    return all(call.future.done() for call in batch) and not all(call.is_wanted for call in batch)


def _ends(element: Any) -> bool:
    """Whether an element says that there is no more for its caller: one of the two exceptions, or its class."""
    kind = element if isinstance(element, type) else type(element)
    return issubclass(kind, StopIteration | StopAsyncIteration)


def _finish(call: BatchCall) -> None:
    if not call.future.done():
        call.future.set_result(None)
        if call.stream is not None:
            call.stream.put_nowait(StreamEnd)


def _request_of(batch: list[BatchCall]) -> RequestContext:
    """What a batch runs for: it has the model and the latest deadline of its requests, and goes on when one is cancelled."""
    requests = [call.request for call in batch]
    first = requests[0]
    deadlines = [request.deadline for request in requests if request.deadline is not None]
    return RequestContext(
        first.request_id,
        first.route,
        first.app_name,
        first.multiplexed_model_id,
        max(deadlines) if len(deadlines) == len(batch) else None,
        max(request.depth for request in requests),
        pattern=first.pattern,
    )


def _called(function: Callable[..., Any], batch: list[BatchCall]) -> Any:
    args = [[call.args[index] for call in batch] for index in range(len(batch[0].args))]
    kwargs = {name: [call.kwargs[name] for call in batch] for name in batch[0].kwargs}
    return function(*args, **kwargs)


def _check_length(name: str, results: Any, batch: list[BatchCall]) -> None:
    if not (hasattr(results, "__len__") and hasattr(results, "__iter__")):
        raise ServdError(f"{name} got {len(batch)} items and must give a list, it gave {type(results).__name__}")
    if len(results) != len(batch):
        raise ServdError(f"{name} got {len(batch)} items and gave {len(results)} results: that must be as many")


def _fail(call: BatchCall, error: BaseException) -> None:
    if not call.future.done():
        call.future.set_exception(for_future(error))
        # an item whose caller is gone is no news for the log
        call.future.exception()
    if call.stream is not None:
        call.stream.put_nowait(StreamEnd)


def forget_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Have no queue of this process keep a loop that is closed."""
    for queue in all_queues():
        queue.forget(loop)
