"""`multiplexed`: many models in one replica, loaded when asked for, the least recently used one unloaded first.

How this works: each decorated method has a pool. A model is *in use* from the moment a request asks for it until that request
ends; the end is known from the request's task, so users need not give models back. Models in use are never unloaded.
"""

import asyncio
import functools
import inspect
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from servd.calls.replica_context import replica_context
from servd.calls.request_context import current_request
from servd.ground.clock import SystemClock
from servd.observability.measures import family, labelled
from servd.wire.messages import MetricFamily

logger = logging.getLogger(__name__)

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
        self._users: dict[str, set[asyncio.Task[Any]]] = {}
        self._loading: dict[str, asyncio.Future[Any]] = {}
        self._reserved = 0
        self._changed: asyncio.Event | None = None
        with _lock:
            _pools.add(self)

    def __repr__(self) -> str:
        return f"ModelPool({list(self._models)}, loading={list(self._loading)}, limit={self._limit})"

    def model_ids(self) -> tuple[str, ...]:
        """Ids held, least recently used first."""
        return tuple(self._models.copy())

    async def get(self, model_id: str) -> Any:
        """The model, loaded if it is not held; in use until the calling task ends.

        Raises:
            Exception: what the loader raises; nothing is kept then.
            TimeoutError: all models were in use until the request's deadline.
        """
        self._use(model_id)
        while model_id not in self._models:
            loading = self._loading.get(model_id)
            if loading is None:
                loading = self._loading[model_id] = asyncio.ensure_future(self._bring_in(model_id))
                loading.add_done_callback(functools.partial(self._loaded, model_id))
            # a caller that gives up must not end the load for the others
            await asyncio.shield(loading)
        self._models.move_to_end(model_id)
        return self._models[model_id]

    def _loaded(self, model_id: str, loading: "asyncio.Future[Any]") -> None:
        del self._loading[model_id]
        if not loading.cancelled():
            # whoever asked gets it from the future
            loading.exception()

    async def _bring_in(self, model_id: str) -> None:
        deadline = current_request.get().deadline
        try:
            async with asyncio.timeout_at(deadline):
                await self._make_room()
        except TimeoutError:
            raise TimeoutError(
                f"model {model_id!r} waited until the request's deadline: all models are in use"
            ) from None
        began = _now()
        try:
            self._models[model_id] = await self._load(model_id)
            _times.loads += 1
            _times.last_load_s = _now() - began
        finally:
            self._reserved -= 1
            self._wake()

    async def _make_room(self) -> None:
        """Wait for room for one more model and reserve it."""
        while self._limit != _UNLIMITED and len(self._models) + self._reserved >= self._limit:
            idle = next((held for held in self._models if not self._users.get(held)), None)
            if idle is not None:
                await self._unload(idle)
                continue
            if self._changed is None or self._changed.is_set():
                self._changed = asyncio.Event()
            await self._changed.wait()
        self._reserved += 1

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def _unload(self, model_id: str) -> None:
        model = self._models.pop(model_id)
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
        task = asyncio.current_task()
        if task is None:
            return
        users = self._users.setdefault(model_id, set())
        if task not in users:
            users.add(task)
            task.add_done_callback(functools.partial(self._release, model_id))

    def _release(self, model_id: str, task: "asyncio.Task[Any]") -> None:
        users = self._users[model_id]
        users.discard(task)
        if not users:
            del self._users[model_id]
            self._wake()


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
        self._attribute = f"__servd_models_{function.__name__}"
        self._pool: ModelPool | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # travels with its function by value; models stay here
        return _OwnPool, (self._function, self._limit)

    def pool(self) -> ModelPool:
        if self._pool is None:
            self._pool = ModelPool(self._function, self._limit)
        return self._pool

    def of_instance(self, owner: Any) -> ModelPool:
        pool: ModelPool | None = owner.__dict__.get(self._attribute)
        if pool is None:
            load = functools.partial(self._function, owner)
            pool = owner.__dict__[self._attribute] = ModelPool(load, self._limit)
        return pool


def _checked_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if len(args) != 1 or kwargs:
        raise TypeError("a multiplexed function takes exactly one positional argument, the model id")
    model_id = args[0]
    if not isinstance(model_id, str):
        raise TypeError(f"a model id is a str, got {type(model_id).__name__}")
    if not model_id:
        raise ValueError("the model id is empty: the request names no model")
    return model_id
