"""`multiplexed`: many models in one replica, loaded when asked for, the least recently used one unloaded first."""

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

from servd.app.kept import kept_for
from servd.app.model_pool import UNLIMITED, ModelPool
from servd.calls.replica_context import refuse_in_template, replica_context

Loader = TypeVar("Loader", bound=Callable[..., Coroutine[Any, Any, Any]])


@overload
def multiplexed(func: Loader, max_num_models_per_replica: int = 3) -> Loader: ...
@overload
def multiplexed(func: None = None, max_num_models_per_replica: int = 3) -> Callable[[Loader], Loader]: ...
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
    if max_num_models_per_replica != UNLIMITED and max_num_models_per_replica <= 0:
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
            refuse_in_template("calling a multiplexed function")
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
