"""Health checks of a replica: when they run, where they run, and what their failures add up to."""

import asyncio
import inspect
import queue
import random
import threading
from collections.abc import Callable
from typing import Any

from servd.calls.failures import tell
from servd.ground.clock import SystemClock
from servd.observability.described import for_future, summary_of
from servd.observability.measures import Distribution
from servd.observability.tracebacks import user_traceback

_JITTER = 0.1
# a loop's own clock stands still within a turn
_now = SystemClock().now


class HealthChecks:
    """Periodic checks. All methods belong on the warden's loop.

    A sync check runs on a thread of its own, so busy handlers do not block it; an async one on the main loop,
    where a blocked loop shows as a time-out. Without a check the main loop only has to give a sign of life.

    Args:
        main_loop: of the user's code.
        on_verdict: called after each check with the consecutive failures (0 = well) and the last one's text.
        further: what else speaks against it, "" for nothing; it gets the time-out, seconds.

    Attributes:
        failed: checks that failed. took_ms: how long checks took. Any thread may ask for both.
    """

    def __init__(
        self,
        main_loop: asyncio.AbstractEventLoop,
        check: Callable[[], Any] | None,
        on_verdict: Callable[[int, str], None],
        *,
        period_s: float,
        timeout_s: float,
        rng: random.Random | None = None,
        further: Callable[[float], str] = lambda _: "",
    ) -> None:
        self._main_loop = main_loop
        self._check = check
        self._on_verdict = on_verdict
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._change: asyncio.Future[None] | None = None
        self._rng = rng or random.Random()
        self._further = further
        self._failures = 0
        self.failed = 0
        self.took_ms = Distribution()
        self._thread: _CheckThread | None = None
        self._pending: asyncio.Future[Any] | None = None

    def __repr__(self) -> str:
        return f"HealthChecks(failures={self._failures}, every={self._period_s}s, limit={self._timeout_s}s)"

    @property
    def asks_main_loop(self) -> bool:
        """Whether a check that succeeds shows that the main loop turns."""
        return self._check is None or inspect.iscoroutinefunction(self._check)

    async def first(self) -> None:
        """The check that ends the start-up; raises what it raises."""
        if self._check is not None:
            await self._begin()

    async def run(self) -> None:
        """Check for ever; the first one at once."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began, begun_at = loop.time(), _now()
                message = await self._verdict(began) or self._further(self._timeout_s)
                self.took_ms.add(1000 * (_now() - begun_at))
                self._failures = self._failures + 1 if message else 0
                self.failed += bool(message)
                self._on_verdict(self._failures, message)
                jitter = self._rng.uniform(1 - _JITTER, 1 + _JITTER)
                while (pause := began + self._period_s * jitter - loop.time()) > 0:
                    await self._wait((), pause)
        finally:
            if self._pending is not None:
                self._pending.cancel()

    def set_times(self, period_s: float, timeout_s: float) -> None:
        """Use these from now on, also for the pause and the check that are under way."""
        self._period_s, self._timeout_s = period_s, timeout_s
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    async def _wait(self, futures: tuple[asyncio.Future[Any], ...], limit_s: float) -> None:
        """Return when one of these is done, after `limit_s`, or when there are new times."""
        self._change = asyncio.get_running_loop().create_future()
        await asyncio.wait((*futures, self._change), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)

    async def _verdict(self, began: float) -> str:
        """Text of the failure, "" when well."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._begin())
        loop = asyncio.get_running_loop()
        while not self._pending.done() and (left := began + self._timeout_s - loop.time()) > 0:
            await self._wait((self._pending,), left)
        if not self._pending.done():
            # it stays pending: there is no second check beside one that hangs, but each period counts
            what = "the health check" if self._check is not None else "the replica's event loop"
            return f"{what} gave no answer within {self._timeout_s:g} s"
        ended, self._pending = self._pending, None
        if ended.cancelled():
            return "the health check was cancelled"
        error = ended.exception()
        if error is None:
            return ""
        tell(error, "check_health")
        return user_traceback(error)

    async def _begin(self) -> None:
        if self._check is None:
            await _sign_of_life(self._main_loop)
        elif inspect.iscoroutinefunction(self._check):
            await _ended(self._main_loop, self._check)
        else:
            if self._thread is None:
                self._thread = _CheckThread(self._check)
            result = await self._thread.run(asyncio.get_running_loop())
            if inspect.isawaitable(result):
                await _ended(self._main_loop, lambda: result)


async def _sign_of_life(main_loop: asyncio.AbstractEventLoop) -> None:
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[None] = loop.create_future()
    main_loop.call_soon_threadsafe(loop.call_soon_threadsafe, _settle, heard, None, None)
    await heard


async def _ended(main_loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    async def run() -> None:
        try:
            await function()
            return
        # user code: `sys.exit()` in a check is a failed check
        except BaseException as raised:
            error = _as_failure(raised)
        raise error

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), main_loop))


def _as_failure(error: BaseException) -> BaseException:
    if issubclass(type(error), Exception):
        return for_future(error)
    failure = RuntimeError(f"the health check raised {summary_of(error)}")
    failure.__cause__ = error
    return failure


class _CheckThread:
    def __init__(self, check: Callable[[], Any]) -> None:
        self._check = check
        self._orders: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="health-check", daemon=True).start()

    async def run(self, loop: asyncio.AbstractEventLoop) -> Any:
        result: asyncio.Future[Any] = loop.create_future()
        self._orders.put((loop, result))
        return await result

    def _serve(self) -> None:
        while True:
            loop, result = self._orders.get()
            value: Any = None
            error: BaseException | None = None
            try:
                value = self._check()
            # user code: `sys.exit()` in a check is a failed check
            except BaseException as raised:
                error = _as_failure(raised)
            try:
                loop.call_soon_threadsafe(_settle, result, value, error)
            except RuntimeError:
                return


def _settle(result: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
    if result.done():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
