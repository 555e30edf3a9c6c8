"""`batch`: single calls in, one call of the user's function with lists out."""

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from servd.app.batch_options import BatchOptions, checked_size, checked_wait
from servd.app.options import BATCH_ATTRIBUTE
from servd.calls.request_context import RequestContext, current_request
from servd.exceptions import ServdError


class _End:
    """Stands for the end of a stream. Not an object: decorated functions travel by value, and it would become another."""


class _Call:
    """One caller's item: single values for the parameters.

    key: which parameters were passed, and the request's model; a batch has one of each. stream: its elements, for generators.
    """

    __slots__ = ("args", "future", "key", "kwargs", "request", "size", "stream")

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        future: "asyncio.Future[Any]",
        size: int,
        streams: bool,
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.future = future
        self.size = size
        self.request = current_request.get()
        self.key = len(args), tuple(sorted(kwargs)) if kwargs else (), self.request.multiplexed_model_id
        self.stream: asyncio.Queue[Any] | None = asyncio.Queue() if streams else None

    @property
    def is_wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self.future.cancelled()


class BatchQueue:
    """Items that wait for one function or bound method; batches are formed in order of arrival."""

    def __init__(self, function: Callable[..., Any], options: BatchOptions) -> None:
        self._function = function
        self._options = options
        self._name = getattr(function, "func", function).__qualname__
        self._streams = inspect.isasyncgenfunction(function)
        self._waiting: list[_Call] = []
        self._arrivals: list[float] = []
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False

    def __repr__(self) -> str:
        return f"BatchQueue({self._name}, waiting={len(self._waiting)}, running={len(self._running)})"

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """Queue one call; its future gets the result."""
        loop = asyncio.get_running_loop()
        measure = self._options.batch_size_fn
        size = 1 if measure is None else measure([next(iter((*args, *kwargs.values())), None)])
        call = _Call(args, kwargs, loop.create_future(), size, self._streams)
        self._waiting.append(call)
        self._arrivals.append(loop.time())
        self._schedule()
        return call

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
        size = 0
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
        sizes: dict[Any, int] = {}
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

    async def _run(self, batch: list[_Call]) -> None:
        current_request.set(_request_of(batch))
        # code that catches everything must not end the queue, so neither may its cancellation
        try:
            if self._streams:
                await self._run_stream(batch)
            else:
                await self._run_once(batch)
        except BaseException as error:
            failure = error if isinstance(error, Exception) else ServdError(f"the batch was ended: {error!r}")
            for call in batch:
                _fail(call, failure)

    async def _run_once(self, batch: list[_Call]) -> None:
        try:
            results = await _called(self._function, batch)
            _check_length(self._name, results, batch)
        except Exception as error:
            if self._options.on_error == "split" and len(batch) > 1:
                middle = len(batch) // 2
                await self._run_once(batch[:middle])
                await self._run_once(batch[middle:])
                return
            for call in batch:
                _fail(call, error)
            return
        for call, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                _fail(call, result)
            elif not call.future.done():
                call.future.set_result(result)

    async def _run_stream(self, batch: list[_Call]) -> None:
        try:
            async for step in _called(self._function, batch):
                _check_length(self._name, step, batch)
                for call, element in zip(batch, step, strict=True):
                    assert call.stream is not None
                    if _ends(element):
                        _finish(call)
                    elif not call.future.done():
                        call.stream.put_nowait(element)
        finally:
            for call in batch:
                if call.stream is not None:
                    call.stream.put_nowait(_End)
        for call in batch:
            _finish(call)


def _ends(element: Any) -> bool:
    """Whether an element says that there is no more for its caller: one of the two exceptions, or its class."""
    kind = element if isinstance(element, type) else type(element)
    return issubclass(kind, StopIteration | StopAsyncIteration)


def _finish(call: _Call) -> None:
    if not call.future.done():
        call.future.set_result(None)
        if call.stream is not None:
            call.stream.put_nowait(_End)


def _request_of(batch: list[_Call]) -> RequestContext:
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
    )


def _called(function: Callable[..., Any], batch: list[_Call]) -> Any:
    args = [[call.args[index] for call in batch] for index in range(len(batch[0].args))]
    kwargs = {name: [call.kwargs[name] for call in batch] for name in batch[0].kwargs}
    return function(*args, **kwargs)


def _check_length(name: str, results: Any, batch: list[_Call]) -> None:
    if not (hasattr(results, "__len__") and hasattr(results, "__iter__")):
        raise ServdError(f"{name} got {len(batch)} items and must give a list, it gave {type(results).__name__}")
    if len(results) != len(batch):
        raise ServdError(f"{name} got {len(batch)} items and gave {len(results)} results: that must be as many")


def _fail(call: _Call, error: BaseException) -> None:
    if not call.future.done():
        call.future.set_exception(error)
        # an item whose caller is gone is no news for the log
        call.future.exception()
    if call.stream is not None:
        call.stream.put_nowait(_End)


def batch(
    _func: Callable[..., Any] | None = None,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.0,
    max_concurrent_batches: int = 1,
    *,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
    on_error: str = "fail",
) -> Any:
    """Collect single calls of an `async def` function or method into calls with lists.

    Callers pass and get single values; the function gets a list per parameter passed and gives a list of equal length. An
    exception object in that list is raised to its caller alone. An async generator yields one list per step; each caller
    gets an async generator of its elements, which `StopIteration` ends. The decorated function has `set_max_batch_size(n)` and
    `set_batch_wait_timeout_s(s)`.

    Args:
        max_batch_size: items, or what `batch_size_fn` sums up to, >= 1.
        batch_wait_timeout_s: how long the oldest item waits for others, seconds, >= 0.
        max_concurrent_batches: batches of one queue that run at a time, >= 1.
        batch_size_fn: size of a list of items (values of the first parameter).
        on_error: "fail" = an exception of the function is everybody's; "split" = the halves are tried again.

    Raises:
        TypeError: no such function, or an option of a wrong type. ValueError: an option out of its bounds.
    """
    options = BatchOptions(max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn, on_error)
    if _func is None:
        return lambda function: _decorated(function, options)
    return _decorated(_func, options)


def _decorated(function: Any, options: BatchOptions) -> Callable[..., Any]:
    if not callable(function):
        raise TypeError(f"`batch` decorates a function, got {type(function).__name__}")
    if not inspect.iscoroutinefunction(function) and not inspect.isasyncgenfunction(function):
        raise TypeError(f"`batch` needs an `async def` function, {function.__qualname__} is none")
    queues = _Queues(function, options)

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            call = queues.add(args, kwargs)
            assert call.stream is not None
            try:
                while (element := await call.stream.get()) is not _End:
                    if isinstance(element, Exception):
                        raise element
                    yield element
                if call.future.done():
                    call.future.result()
            finally:
                call.future.cancel()

    else:

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await queues.add(args, kwargs).future

    def set_max_batch_size(new_max_batch_size: int) -> None:
        """Change the size, from the next batch on."""
        options.max_batch_size = checked_size("max_batch_size", new_max_batch_size)

    def set_batch_wait_timeout_s(new_batch_wait_timeout_s: float) -> None:
        """Change the wait, from the next batch on."""
        options.batch_wait_timeout_s = checked_wait(new_batch_wait_timeout_s)

    wrapper.set_max_batch_size = set_max_batch_size  # type: ignore[attr-defined]
    wrapper.set_batch_wait_timeout_s = set_batch_wait_timeout_s  # type: ignore[attr-defined]
    setattr(wrapper, BATCH_ATTRIBUTE, options)
    return wrapper


class _Queues:
    """The queues of one decorated function: one per instance for a method, one for a plain function."""

    def __init__(self, function: Callable[..., Any], options: BatchOptions) -> None:
        self._function = function
        self._options = options
        self._attribute = f"__servd_queue_{function.__name__}"
        self._signature = inspect.signature(function)
        self._is_method = next(iter(self._signature.parameters), "") == "self"
        self._as_passed = _counts_to_pass(self._signature)
        self._own: BatchQueue | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # travels with its function by value; waiting items stay here
        return _Queues, (self._function, self._options)

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        if kwargs or len(args) not in self._as_passed:
            bound = self._signature.bind(*args, **kwargs)
            passed, kwargs = bound.args, bound.kwargs
        else:
            passed = args
        return self._queue_of(args).add(passed[1:] if self._is_method else passed, kwargs)

    def _queue_of(self, args: tuple[Any, ...]) -> BatchQueue:
        if not self._is_method:
            if self._own is None:
                self._own = BatchQueue(self._function, self._options)
            return self._own
        owner = args[0]
        queue: BatchQueue | None = owner.__dict__.get(self._attribute)
        if queue is None:
            bound = functools.partial(self._function, owner)
            queue = owner.__dict__[self._attribute] = BatchQueue(bound, self._options)
        return queue


def _counts_to_pass(signature: inspect.Signature) -> range:
    """How many positional arguments alone make a valid call: those need no binding, which costs more than the rest."""
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return range(0)
    return range(sum(p.default is p.empty for p in positional), len(positional) + 1)
