"""`ray.put` and its like: values that are there already, in the form of results of handle calls."""

import asyncio
import concurrent.futures
from collections.abc import Sequence
from typing import Any

from servd.calls import response
from servd.calls.response import DeploymentResponse, Ref
from servd.ground.clock import SystemClock

Refs = list[DeploymentResponse[Any]]


class KeptValue(Ref[Any]):
    """What `put` gives: a response that holds its value from the start. To another process the value travels along."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return put, (self.value,)


def put(value: Any, **_options: Any) -> KeptValue:
    """The value as something that handle calls and `bind` take for it, and `get` gives back; there is no object store."""
    kept = KeptValue(None)
    kept._keep(value, None)
    return kept


def get(refs: Any, timeout: float | None = None) -> Any:
    """As `servd.get`; what `put` gave is there also on an event-loop thread."""
    if isinstance(refs, KeptValue):
        return refs.value
    if isinstance(refs, list | tuple) and refs and all(isinstance(item, KeptValue) for item in refs):
        return [item.value for item in refs]
    return response.get(refs, timeout)


def wait(
    refs: Sequence[Any], *, num_returns: int = 1, timeout: float | None = None, **_options: Any
) -> tuple[Refs, Refs]:
    """Wait until so many responses have their values or errors, or `timeout` seconds.

    Returns:
        At most `num_returns` that have, and the others, both in the order of `refs`.

    Raises:
        TypeError: something else than responses. ValueError: one twice, or `num_returns` is not one of 1 to their number.
        RuntimeError: on an event-loop thread.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("this would block the event loop: use `await asyncio.wait(...)` instead of `wait`")
    if not isinstance(refs, list | tuple) or not all(isinstance(ref, DeploymentResponse) for ref in refs):
        raise TypeError("`wait` takes a list of responses of handle calls")
    if refs and not 0 < num_returns <= len(refs):
        raise ValueError(
            f"num_returns is at least 1 and at most the number of responses, {len(refs)}; got {num_returns}"
        )
    if len({id(ref) for ref in refs}) < len(refs):
        raise ValueError("`wait` takes each response once")
    waiting = {id(ref): ref._settle_on_its_loop() for ref in refs if not ref._is_settled}
    now = SystemClock().now
    deadline = None if timeout is None else now() + timeout
    while True:
        under_way = {future for future in waiting.values() if not future.done()}
        ready = [ref for ref in refs if waiting.get(id(ref)) not in under_way][:num_returns]
        left = None if deadline is None else max(0.0, deadline - now())
        if len(ready) == num_returns or not under_way or left == 0.0:
            break
        concurrent.futures.wait(under_way, left, return_when=concurrent.futures.FIRST_COMPLETED)
    taken = {id(ref) for ref in ready}
    return ready, [ref for ref in refs if id(ref) not in taken]


def cancel(ref: Any, **_options: Any) -> None:
    """Take a handle call back; see `DeploymentResponse.cancel`."""
    ref.cancel()
