"""The models of one `multiplexed` function: loaded when asked for, the least recently used one unloaded first.

How this works: each decorated method has a pool. A model is *in use* from the moment a request asks for it until that request
ends, so users need not give models back. Models in use are never unloaded. A load that finds no room waits for the first model
that comes free, unless none will: then the least recently used one leaves the pool, and is unloaded when its requests have ended.
"""

import asyncio
import contextvars
import functools
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from servd.calls.failures import TimeLimitError, tell, tell_or_log
from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.exceptions import UserCodeError
from servd.ground.clock import SystemClock
from servd.observability.described import summary_of
from servd.observability.measures import Distribution, family, labelled
from servd.wire.messages import MetricFamily

LONGEST_WAIT_S = 5.0
"""How long a load waits for a model that others use before the least recently used one leaves the pool for it."""

UNLIMITED = -1
"""Stands for no limit."""

_now = SystemClock().now
_pools: "weakref.WeakSet[ModelPool]" = weakref.WeakSet()
_lock = threading.Lock()


def loaded_model_ids() -> tuple[str, ...]:
    """Ids of all models that this replica holds, least recently used first; any thread may ask."""
    with _lock:
        pools = list(_pools)
    return tuple(dict.fromkeys(model_id for pool in pools for model_id in pool.model_ids()))


def model_metrics(**tags: str) -> list[MetricFamily]:
    """What happened to the models of this replica. tags: the replica's."""
    with _lock:
        pools = list(_pools)
    pairs = labelled(**tags)
    held = sum(len(pool.model_ids()) for pool in pools)
    found = [
        family("serve_num_multiplexed_models", [(pairs, held)]),
        family("serve_multiplexed_models_load_counter", [(pairs, _times.loads)]),
        family("serve_multiplexed_models_unload_counter", [(pairs, _times.unloads)]),
        family("serve_multiplexed_get_model_requests_counter", [(pairs, _times.gets)]),
        family("serve_multiplexed_model_load_latency_ms", [(pairs, _times.loads_ms.sample())]),
        family("serve_multiplexed_model_unload_latency_ms", [(pairs, _times.unloads_ms.sample())]),
    ]
    if _times.loads:
        found.append(family("serve_multiplexed_model_load_latency_s", [(pairs, _times.last_load_s)]))
    if _times.unloads:
        found.append(family("serve_multiplexed_model_unload_latency_s", [(pairs, _times.last_unload_s)]))
    return found


async def unload_all() -> None:
    """End every model of this process, in use or not; before the process ends."""
    with _lock:
        pools = list(_pools)
    for pool in pools:
        await pool.close()


class _Times:
    """Loads and unloads in this process, how often one was asked for, and how long the last of each took, seconds."""

    def __init__(self) -> None:
        self.loads = self.unloads = self.gets = 0
        self.last_load_s = self.last_unload_s = 0.0
        self.loads_ms, self.unloads_ms = Distribution(), Distribution()


_times = _Times()


class ModelPool:
    """The models of one decorated function or bound method.

    Args:
        load: `async` function of a model id.
        limit: models held at a time, -1 = any number.
    """

    def __init__(self, load: Callable[[str], Any], limit: int) -> None:
        self._load = load
        self._limit = limit
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._users: dict[str, set[Any]] = {}
        self._loads: dict[str, _Load] = {}
        self._leaving: list[tuple[str, Any, set[Any]]] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        with _lock:
            _pools.add(self)

    def __repr__(self) -> str:
        return f"ModelPool({list(self._models)}, loading={list(self._loads)}, limit={self._limit})"

    def model_ids(self) -> tuple[str, ...]:
        """Ids held, least recently used first."""
        return tuple(self._models.copy())

    async def get(self, model_id: str) -> Any:
        """The model, loaded if it is not held; in use until the request that asks has ended.

        Raises:
            Exception: what the loader raises; nothing is kept then.
            TimeoutError: the request's deadline passed before the model was there.
        """
        _times.gets += 1
        self._use(model_id)
        while model_id not in self._models:
            load = self._loads.get(model_id)
            if load is None:
                # of nobody's request: neither the client nor the deadline of the first that asks ends it for the others
                load = self._loads[model_id] = _Load(model_id)
                load.task = asyncio.get_running_loop().create_task(
                    self._bring_in(model_id, load), context=_own_context(load.request)
                )
                load.task.add_done_callback(functools.partial(self._loaded, model_id, load))
            await self._wait_for(model_id, load)
        self._models.move_to_end(model_id)
        return self._models[model_id]

    async def _wait_for(self, model_id: str, load: "_Load") -> None:
        assert load.task is not None
        load.listeners += 1
        try:
            async with asyncio.timeout_at(current_request.get().deadline):
                # a caller that gives up must not end the load for the others
                await asyncio.shield(load.task)
        except TimeoutError:
            if load.task.done():
                raise
            stage = "waited for room: all models are in use" if load.is_short else "was being loaded"
            raise TimeLimitError(f"model {model_id!r} {stage} when the request's time limit passed") from None
        finally:
            load.listeners -= 1
            if not load.listeners:
                if load.is_short:
                    self._give_up(model_id, load)
                self._wake()

    def _give_up(self, model_id: str, load: "_Load") -> None:
        self._forget(model_id, load)
        assert load.task is not None
        load.task.cancel()

    def _forget(self, model_id: str, load: "_Load") -> None:
        if self._loads.get(model_id) is load:
            del self._loads[model_id]

    def _loaded(self, model_id: str, load: "_Load", task: "asyncio.Task[None]") -> None:
        self._forget(model_id, load)
        if not task.cancelled():
            error = task.exception()
            # whoever asked gets it from the task
            if error is not None and not load.listeners:
                tell(error, "multiplexed")

    async def _bring_in(self, model_id: str, load: "_Load") -> None:
        load.is_short = True
        try:
            await self._make_room()
            load.has_room = True
        finally:
            load.is_short = False
        began = _now()
        try:
            model = await _loaded(self._load, model_id)
            _times.loads += 1
            _times.last_load_s = _now() - began
            _times.loads_ms.add(1000 * _times.last_load_s)
            if self._loads.get(model_id) is load:
                self._models[model_id] = model
            else:
                # it was given up, and has not heeded that
                await self._end(model_id, model)
        finally:
            load.has_room = False
            # the models that the loader itself asked for are free now
            load.request.end()
            self._wake()
        await self._make_fit()

    async def _make_room(self) -> None:
        """Find room for one more model: wait for a model to come free, or take one out where none will."""
        self._wake()
        until = _now() + LONGEST_WAIT_S
        while self._limit != UNLIMITED and self._taken() >= self._limit:
            left_s = until - _now()
            victim = self._victim(is_over=left_s <= 0)
            if victim is not None:
                await self._unload(victim)
                continue
            if left_s <= 0 and self._give_up_unwanted():
                continue
            changed = self._changed
            try:
                # loads that are wanted end at some time, and wake this
                async with asyncio.timeout(left_s if left_s > 0 else None):
                    await changed.wait()
            except TimeoutError:
                pass

    def _taken(self) -> int:
        """Models held and on their way, without those whose loaders wait for room themselves: they would for ever."""
        waiting = self._waiting_for_room()
        return len(self._models) + sum(load.has_room and load.request not in waiting for load in self._loads.values())

    def _waiting_for_room(self) -> set[Any]:
        short = [self._users.get(model_id, set()) for model_id, load in self._loads.items() if load.is_short]
        return set().union(*short)

    def _give_up_unwanted(self) -> bool:
        """End one load that nobody waits for any more; False when there is none."""
        for model_id, load in self._loads.items():
            if load.has_room and not load.listeners:
                self._give_up(model_id, load)
                return True
        return False

    async def _make_fit(self) -> None:
        """Unload what is idle beyond the limit: a loader that asked for another model took more room than there is."""
        while self._limit != UNLIMITED and len(self._models) > self._limit:
            idle = next((held for held in self._models if not self._users.get(held)), None)
            if idle is None:
                return
            await self._unload(idle)

    def _victim(self, is_over: bool) -> str | None:
        """The least recently used model that nobody uses; else one that only requests use which wait for room themselves,
        since they would wait for ever; after the longest wait any."""
        by_age = list(self._models)
        idle = next((held for held in by_age if not self._users.get(held)), None)
        if idle is not None:
            return idle
        waiting = self._waiting_for_room()
        stuck = next((held for held in by_age if self._users[held] <= waiting), None)
        return stuck if stuck is not None or not is_over else next(iter(by_age), None)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _unload(self, model_id: str) -> None:
        model = self._models.pop(model_id)
        users = self._users.get(model_id)
        if users:
            # it has left the pool, but whoever works with it goes on
            self._leaving.append((model_id, model, set(users)))
            return
        await self._end(model_id, model)

    async def close(self) -> None:
        """End all models that are held, and those that have left and are still used."""
        left, self._leaving = self._leaving, []
        for model_id, model, _ in left:
            await self._end(model_id, model)
        while self._models:
            await self._end(*self._models.popitem(last=False))

    async def _end(self, model_id: str, model: Any) -> None:
        began = _now()
        await self._finalize(model_id, model)
        _times.unloads += 1
        _times.last_unload_s = _now() - began
        _times.unloads_ms.add(1000 * _times.last_unload_s)

    async def _finalize(self, model_id: str, model: Any) -> None:
        finalizer = getattr(type(model), "__del__", None)
        if finalizer is None:
            return
        try:
            if inspect.iscoroutinefunction(finalizer):
                await finalizer(model)
            else:
                await asyncio.to_thread(finalizer, model)
        except asyncio.CancelledError:
            raise
        # whatever user code raises: a task that ends with `SystemExit` would end the replica
        except BaseException as error:
            tell_or_log(error, f"__del__ of model {model_id}")
        # called once is enough: the interpreter must find nothing to call
        _disarm(model)

    def _use(self, model_id: str) -> None:
        request = current_request.get()
        # a constructor, a health check or what a request left running is no request, and has a task at least
        is_request = request is not NO_REQUEST and not request.has_ended
        user: Any = request if is_request else asyncio.current_task()
        users = self._users.setdefault(model_id, set())
        if user is None or user in users:
            return
        users.add(user)
        if isinstance(user, RequestContext):
            user.when_over(lambda: self._release(model_id, user))
        else:
            user.add_done_callback(functools.partial(self._release, model_id))

    def _release(self, model_id: str, user: Any) -> None:
        users = self._users.get(model_id, set())
        users.discard(user)
        if not users:
            self._users.pop(model_id, None)
        for left in list(self._leaving):
            name, model, others = left
            if name == model_id:
                others.discard(user)
                if not others:
                    self._leaving.remove(left)
                    task = asyncio.get_running_loop().create_task(self._end(name, model))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        self._wake()


class _Load:
    """A model on its way.

    request: what its loader serves. listeners: requests that wait for it. is_short: it waits for room. has_room: it is
    being loaded.
    """

    def __init__(self, model_id: str) -> None:
        asked = current_request.get()
        self.request = RequestContext(asked.request_id, asked.route, asked.app_name, model_id, pattern=asked.pattern)
        self.task: asyncio.Task[None] | None = None
        self.listeners = 0
        self.is_short = False
        self.has_room = False


async def _loaded(load: Callable[[str], Any], model_id: str) -> Any:
    try:
        return await load(model_id)
    except (Exception, asyncio.CancelledError):
        raise
    # a task that ends so would end the replica
    except BaseException as error:
        raise UserCodeError(f"the loader of model {model_id!r} raised {summary_of(error)}") from error


def _own_context(request: RequestContext) -> contextvars.Context:
    """What a load runs in: all that the code around it has set, and a request of its own."""
    own = contextvars.copy_context()
    own.run(current_request.set, request)
    return own


_KEPT: list[Any] = []


def _disarm(model: Any) -> None:
    """Keep the interpreter from calling `__del__` of a model again."""
    kind = type(model)
    try:
        model.__class__ = _bare(kind)
    except TypeError:
        # its layout allows no other class: better a small leak than freeing something twice
        if hasattr(model, "__dict__"):
            model.__dict__.clear()
        _KEPT.append(model)


def _nothing(_model: Any) -> None:
    pass


def _bare(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (kind,), {"__del__": _nothing, "__slots__": ()})
