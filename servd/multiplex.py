"""`multiplexed`: many models in one replica, loaded when asked for, the least recently used one unloaded first.

How this works: each decorated method has a pool. A model is *in use* from the moment a request asks for it until that request
ends, so users need not give models back. Models in use are never unloaded. A load that finds no room waits for the first model
that comes free, unless none will: then the least recently used one leaves the pool, and is unloaded when its requests have ended.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from servd.app.kept import kept_for
from servd.calls.replica_context import replica_context
from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.exceptions import UserCodeError
from servd.ground.clock import SystemClock
from servd.observability.described import summary_of
from servd.observability.measures import family, labelled
from servd.wire.messages import MetricFamily

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0
"""How long a load waits for a model that others use before the least recently used one leaves the pool for it."""

_UNLIMITED = -1
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
    """Loads and unloads in this process, and how long the last of each took, seconds."""

    loads = 0
    unloads = 0
    last_load_s = 0.0
    last_unload_s = 0.0


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
        self._reserved = 0
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
        self._use(model_id)
        while model_id not in self._models:
            load = self._loads.get(model_id)
            if load is None:
                load = self._loads[model_id] = _Load()
                # of nobody's request: neither the client nor the deadline of the first that asks ends it for the others
                load.task = asyncio.get_running_loop().create_task(
                    self._bring_in(model_id, load), context=_own_context(model_id)
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
            raise TimeoutError(f"model {model_id!r} {stage} when the request's time limit passed") from None
        finally:
            load.listeners -= 1
            if load.is_short and not load.listeners:
                self._forget(model_id, load)
                load.task.cancel()

    def _forget(self, model_id: str, load: "_Load") -> None:
        if self._loads.get(model_id) is load:
            del self._loads[model_id]

    def _loaded(self, model_id: str, load: "_Load", task: "asyncio.Task[None]") -> None:
        self._forget(model_id, load)
        if not task.cancelled():
            # whoever asked gets it from the task
            task.exception()

    async def _bring_in(self, model_id: str, load: "_Load") -> None:
        load.is_short = True
        try:
            await self._make_room()
        finally:
            load.is_short = False
        began = _now()
        try:
            self._models[model_id] = await _loaded(self._load, model_id)
            _times.loads += 1
            _times.last_load_s = _now() - began
        finally:
            self._reserved -= 1
            self._wake()

    async def _make_room(self) -> None:
        """Reserve room for one more model: wait for a model to come free, or take one out where none will."""
        self._wake()
        until = _now() + LONGEST_WAIT_S
        while self._limit != _UNLIMITED and len(self._models) + self._reserved >= self._limit:
            left_s = until - _now()
            victim = self._victim(is_over=left_s <= 0)
            if victim is not None:
                await self._unload(victim)
                continue
            changed = self._changed
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                pass
        self._reserved += 1

    def _victim(self, is_over: bool) -> str | None:
        """The least recently used model that nobody uses; else one that only requests use which wait for room themselves,
        since they would wait for ever; after the longest wait any."""
        by_age = list(self._models)
        idle = next((held for held in by_age if not self._users.get(held)), None)
        if idle is not None:
            return idle
        short = [self._users.get(model_id, set()) for model_id, load in self._loads.items() if load.is_short]
        waiting = set().union(*short)
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

    async def _finalize(self, model_id: str, model: Any) -> None:
        finalizer = getattr(type(model), "__del__", None)
        if finalizer is None:
            return
        try:
            if inspect.iscoroutinefunction(finalizer):
                await finalizer(model)
            else:
                await asyncio.to_thread(finalizer, model)
        except Exception:
            logger.exception("model_unload_failed model_id=%s", model_id)
        # called once is enough: the interpreter must find nothing to call
        _disarm(model)

    def _use(self, model_id: str) -> None:
        request = current_request.get()
        # a constructor or a health check is no request, and has a task at least
        user: Any = asyncio.current_task() if request is NO_REQUEST else request
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
    """A model on its way. listeners: requests that wait for it. is_short: it waits for room."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.listeners = 0
        self.is_short = False


async def _loaded(load: Callable[[str], Any], model_id: str) -> Any:
    try:
        return await load(model_id)
    except (Exception, asyncio.CancelledError):
        raise
    # a task that ends so would end the replica
    except BaseException as error:
        raise UserCodeError(f"the loader of model {model_id!r} raised {summary_of(error)}") from error


def _own_context(model_id: str) -> contextvars.Context:
    """What a load runs in: all that the code around it has set, and a request of its own."""
    own = contextvars.copy_context()
    asked = current_request.get()
    request = RequestContext(asked.request_id, asked.route, asked.app_name, model_id)
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


def multiplexed(func: Any = None, max_num_models_per_replica: int = 3) -> Any:
    """Make an `async` function of a model id a cache of models.

    Args:
        func: a function of the id, or a method of self and the id.
        max_num_models_per_replica: models held at a time by one replica, > 0, or -1 for any number.

    Raises:
        TypeError: no such function, or the limit is no integer. ValueError: the limit is out of its bounds.
    """
    if not isinstance(max_num_models_per_replica, int) or isinstance(max_num_models_per_replica, bool):
        raise TypeError(f"max_num_models_per_replica must be an integer, got {max_num_models_per_replica!r}")
    if max_num_models_per_replica != _UNLIMITED and max_num_models_per_replica <= 0:
        raise ValueError(f"max_num_models_per_replica must be positive or -1, got {max_num_models_per_replica}")
    if func is None:
        return lambda target: _decorated(target, max_num_models_per_replica)
    return _decorated(func, max_num_models_per_replica)


def _decorated(function: Any, limit: int) -> Callable[..., Any]:
    if not callable(function) or not inspect.iscoroutinefunction(function):
        raise TypeError(f"`multiplexed` needs an `async def` function, got {function!r}")
    parameters = list(inspect.signature(function).parameters)
    is_method = len(parameters) == 2
    if len(parameters) not in (1, 2):
        raise TypeError(f"{function.__qualname__} must take a model id, or self and a model id")
    own = _OwnPool(function, limit)

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        model_id = _checked_id(args[1:] if is_method else args, kwargs)
        if replica_context() is None:
            raise RuntimeError("a multiplexed function works only inside a replica")
        pool = own.of_instance(args[0]) if is_method else own.pool()
        return await pool.get(model_id)

    return wrapper


class _OwnPool:
    """Finds the pool of a plain function, or of an instance's method."""

    def __init__(self, function: Callable[..., Any], limit: int) -> None:
        self._function, self._limit = function, limit
        self._pool: ModelPool | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # travels with its function by value; models stay here
        return _OwnPool, (self._function, self._limit)

    def pool(self) -> ModelPool:
        if self._pool is None:
            self._pool = ModelPool(self._function, self._limit)
        return self._pool

    def of_instance(self, owner: Any) -> ModelPool:
        return kept_for(owner, self, lambda: ModelPool(functools.partial(self._function, owner), self._limit))


def _checked_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if len(args) != 1 or kwargs:
        raise TypeError("a multiplexed function takes exactly one positional argument, the model id")
    model_id = args[0]
    if not isinstance(model_id, str):
        raise TypeError(f"a model id is a str, got {type(model_id).__name__}")
    if not model_id:
        raise ValueError("the model id is empty: the request names no model")
    return model_id
