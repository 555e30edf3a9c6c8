"""`batch`: single calls in, one call of the user's function with lists out."""

import asyncio
import contextlib
import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any

from servd.app.batch_options import BatchOptions, checked_size, checked_wait
from servd.app.batch_queue import BatchCall, BatchQueue, StreamEnd
from servd.app.kept import kept_for
from servd.app.options import BATCH_ATTRIBUTE


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
    gets an async generator of its elements, which `StopIteration` ends; its item waits from the call on. The decorated function
    has `set_max_batch_size(n)` and `set_batch_wait_timeout_s(s)`.

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
        def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            # off a loop, as on a thread of sync handlers, nothing can wait yet
            call = queues.add(args, kwargs) if asyncio._get_running_loop() is not None else None
            elements = _elements(call, functools.partial(queues.add, args, kwargs))
            if call is not None:
                # a generator that never begins runs no `finally` either
                weakref.finalize(elements, _forget, call.future).atexit = False
            return elements

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


async def _elements(call: BatchCall | None, add: Callable[[], BatchCall]) -> AsyncGenerator[Any, None]:
    """What a batch has for one of its calls; one that was queued on another loop than this is queued anew."""
    if call is not None and call.future.get_loop() is not asyncio.get_running_loop():
        _forget(call.future)
        call = None
    call = call or add()
    assert call.stream is not None
    try:
        while (element := await call.stream.get()) is not StreamEnd:
            if isinstance(element, Exception):
                raise element
            yield element
        if call.future.done():
            call.future.result()
    finally:
        call.future.cancel()


def _forget(future: "asyncio.Future[Any]") -> None:
    """Give a call up; wherever garbage is collected."""
    loop = future.get_loop()
    if asyncio._get_running_loop() is loop:
        future.cancel()
    elif not future.done():
        # nothing waits on a loop that is closed
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(future.cancel)


class _Queues:
    """The queues of one decorated function: one per instance for a method, one for a plain function."""

    def __init__(self, function: Callable[..., Any], options: BatchOptions) -> None:
        self._function = function
        self._options = options
        self._signature = inspect.signature(function)
        # None: only the first call shows whether it comes with an instance
        self._is_method = True if next(iter(self._signature.parameters), "") == "self" else None
        self._as_passed = _counts_to_pass(self._signature)
        self._own: BatchQueue | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # travels with its function by value; waiting items stay here
        return _Queues, (self._function, self._options)

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BatchCall:
        if kwargs or len(args) not in self._as_passed:
            bound = self._signature.bind(*args, **kwargs)
            passed, kwargs = bound.args, bound.kwargs
        else:
            passed = args
        queue = self._queue_of(args)
        return queue.add(passed[1:] if self._is_method else passed, kwargs)

    def _queue_of(self, args: tuple[Any, ...]) -> BatchQueue:
        if self._is_method is None:
            self._is_method = bool(args) and _is_owner(args[0], self._options)
        if not self._is_method:
            if self._own is None:
                self._own = BatchQueue(self._function, self._options)
            return self._own
        owner = args[0]
        return kept_for(owner, self, lambda: BatchQueue(functools.partial(self._function, owner), self._options))


def _is_owner(first: Any, options: BatchOptions) -> bool:
    """Whether a first argument is what the decorated function of these options was called on: an instance for a method, a
    class for a class method, whatever the parameter is called."""
    if any(not isinstance(member, staticmethod | classmethod) for member in _members(type(first), options)):
        return True
    return isinstance(first, type) and any(isinstance(member, classmethod) for member in _members(first, options))


def _members(kind: type, options: BatchOptions) -> list[Any]:
    members = [member for base in kind.__mro__ for member in vars(base).values()]
    # a class method shows the attributes of its function only there
    return [m for m in members if getattr(getattr(m, "__func__", m), BATCH_ATTRIBUTE, None) is options]


def _counts_to_pass(signature: inspect.Signature) -> range:
    """How many positional arguments alone make a valid call: those need no binding, which costs more than the rest."""
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return range(0)
    return range(sum(p.default is p.empty for p in positional), len(positional) + 1)
