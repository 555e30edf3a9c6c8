"""Threads for sync handlers: the loop stays alive while they run, one job at a time per thread."""

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from servd.calls.failures import tell
from servd.exceptions import HostLimitError
from servd.ground.clock import SystemClock
from servd.ground.host_limits import told
from servd.observability.loop_watch import blocked

_now = SystemClock().now


class SyncThreads:
    """A fixed number of threads, each started at its first job. All methods belong on the loop's thread."""

    def __init__(self, count: int) -> None:
        self._workers = [_Worker(number) for number in range(count)]
        self._idle = self._workers[::-1]
        self._waiting: deque[_Job] = deque()
        self._begun: dict[_Worker, float] = {}

    def __repr__(self) -> str:
        return f"SyncThreads({len(self._workers)}, idle={len(self._idle)}, waiting={len(self._waiting)})"

    @property
    def waiting(self) -> int:
        """Jobs that wait for a thread; any thread may ask."""
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a job runs; any thread may ask."""
        return bool(self._begun)

    def occupied(self) -> tuple[float, int] | None:
        """Since when every thread is at one job, and the thread that is longest at its; None while one is free.

        Monotonic seconds and the thread's identity. Any thread may ask.
        """
        begun = self._begun.copy()
        if len(begun) < len(self._workers):
            return None
        oldest = min(begun, key=lambda worker: begun[worker])
        ident = oldest.thread.ident if oldest.thread is not None else None
        return max(begun.values()), ident or 0

    async def run(self, function: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> Any:
        """Result of the function, called on whichever thread is free, in `context`, or in a copy of this task's.

        A job that was cancelled before it began is dropped; one that runs cannot be stopped: the cancellation
        is raised when it has ended, so that the caller's slot is held as long as the thread.
        """
        job = _Job(function, args, context)
        if self._idle:
            self._start(self._idle.pop(), job)
        else:
            self._waiting.append(job)
        return await self._outcome(job)

    async def run_first(self, function: Callable[..., Any], *args: Any) -> Any:
        """As `run`, always on the same thread; to be used while nothing else runs."""
        job = _Job(function, args)
        worker = self._workers[0]
        if worker in self._idle:
            self._idle.remove(worker)
        self._start(worker, job)
        return await self._outcome(job)

    async def _outcome(self, job: "_Job") -> Any:
        try:
            value, error = await job.result
        except asyncio.CancelledError:
            if job in self._waiting:
                self._waiting.remove(job)
            elif not job.is_done:
                job.ended = job.loop.create_future()
                await job.ended
            raise
        if error is not None:
            raise error
        return value

    def _start(self, worker: "_Worker", job: "_Job") -> None:
        if worker.thread is None:
            thread = threading.Thread(target=worker.serve, name=worker.name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # no further thread can be had: the job waits for one that there is
                self._idle.insert(0, worker)
                if not self._begun:
                    raise HostLimitError(told(error)) from error
                self._waiting.append(job)
                return
            worker.thread = thread
        worker.given += 1
        self._begun[worker] = _now()
        worker.jobs.put((job, self._finish))

    def _finish(self, worker: "_Worker", job: "_Job", value: Any, error: BaseException | None) -> None:
        job.is_done = True
        worker.given -= 1
        if not worker.given:
            del self._begun[worker]
            if self._waiting:
                self._start(worker, self._waiting.popleft())
            else:
                self._idle.append(worker)
        if job.ended is not None and not job.ended.done():
            job.ended.set_result(None)
        if job.result.done():
            # whoever waited for it is gone
            if error is not None:
                job.context.run(tell, error, job.name)
            return
        # an error as a value too: a future cannot carry each one
        job.result.set_result((value, error))


class ThreadsWatch:
    """Whether sync handlers come and go, seen from another thread. occupied: as `SyncThreads.occupied`."""

    def __init__(self, occupied: Callable[[], tuple[float, int] | None]) -> None:
        self._occupied = occupied

    def __repr__(self) -> str:
        return f"ThreadsWatch({self._occupied()})"

    def stuck(self, limit_s: float) -> str:
        """ "" unless every thread has been at one job for `limit_s`, else for how long, and where the oldest is."""
        occupied = self._occupied()
        age_s = 0.0 if occupied is None else _now() - occupied[0]
        return "" if occupied is None or age_s < limit_s else blocked(occupied[1], age_s)

    def verdict(self, timeout_s: float, *, is_wanted: bool) -> str:
        """Why they make their replica unwell: none comes free, and requests wait for one."""
        stack = self.stuck(timeout_s) if is_wanted else ""
        return f"requests wait, and no thread of sync handlers comes free: {stack.splitlines()[0]}" if stack else ""


class _Job:
    __slots__ = ("args", "context", "ended", "function", "is_done", "loop", "result")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context | None = None
    ) -> None:
        self.function = function
        self.args = args
        self.context = contextvars.copy_context() if context is None else context
        self.loop = asyncio.get_running_loop()
        self.result: asyncio.Future[tuple[Any, BaseException | None]] = self.loop.create_future()
        self.ended: asyncio.Future[None] | None = None
        self.is_done = False

    @property
    def name(self) -> str:
        """Of the user's function, of a step of a generator the generator's."""
        function = getattr(self.function, "func", self.function)
        if function is next:
            function = self.args[0]
        return str(
            getattr(getattr(function, "__self__", None), "__name__", "")
            or getattr(function, "__name__", "")
            or function
        )


class _Worker:
    def __init__(self, number: int) -> None:
        self.name = f"sync-handler-{number}"
        self.jobs: queue.SimpleQueue[tuple[_Job, Callable[..., None]]] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.given = 0

    def serve(self) -> None:
        while True:
            job, finish = self.jobs.get()
            value, error = None, None
            try:
                value = job.context.run(job.function, *job.args)
            # user code: whatever it raises belongs to its caller
            except BaseException as raised:
                error = raised
            try:
                job.loop.call_soon_threadsafe(finish, self, job, value, error)
            except RuntimeError:
                # the loop is closed, the process about to end
                return
            # an idle thread must not keep the last result alive
            del job, finish, value, error
