"""What `ray.put`, `get`, `wait` and `cancel` stand for."""

import asyncio
import pickle
import time
from typing import Any

import pytest

import servd
from servd.calls.response import DeploymentResponse
from servd.compat.object_refs import cancel, get, put, wait


@servd.deployment(max_ongoing_requests=10)
class Model:
    def __init__(self, weight: Any = None) -> None:
        self.weight = 1 if weight is None else get(weight)

    async def times(self, number: int, factor: Any = 1) -> int:
        return int(number * self.weight * (await factor if isinstance(factor, DeploymentResponse) else factor))

    async def slow(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def fails(self) -> None:
        raise KeyError("no such row")


def test_a_value_that_is_put_is_there_at_once() -> None:
    kept = put([1, 2])
    assert isinstance(kept, DeploymentResponse)
    assert get(kept) is kept.result()
    assert get([kept, put(3)]) == get((kept, put(3))) == [[1, 2], 3]

    async def on_a_loop() -> tuple[Any, Any, Any]:
        return get(kept), get([kept]), await kept

    assert asyncio.run(on_a_loop()) == ([1, 2], [[1, 2]], [1, 2])
    assert get(pickle.loads(pickle.dumps(kept))) == [1, 2]


def test_calls_and_constructors_take_it() -> None:
    handle = servd.run(Model.bind(put(5)), name="put", local=True)
    assert handle.times.remote(put(2)).result(5) == 10
    assert handle.times.remote(2, factor=put(3)).result(5) == 30
    assert get([handle.times.remote(1), put("x")], timeout=5) == [5, "x"]


def test_waiting_for_some_of_several() -> None:
    handle = servd.run(Model.bind(), name="wait", local=True)
    quick, failing, slow = handle.slow.remote(0.01), handle.fails.remote(), handle.slow.remote(30)
    ready, others = wait([slow, failing, quick], num_returns=2)
    assert (ready, others) == ([failing, quick], [slow])
    assert get(ready[1]) == 0.01
    with pytest.raises(KeyError, match="no such row"):
        get(ready[0])
    begin = time.monotonic()
    assert wait([slow], timeout=0.02) == ([], [slow])
    assert wait([slow], timeout=0) == ([], [slow])
    assert time.monotonic() - begin < 5
    cancel(slow)
    assert wait([slow], timeout=5) == ([slow], [])
    first, second = put(1), put(2)
    assert wait([first, second]) == ([first], [second])
    assert wait([]) == ([], [])


def test_what_cannot_be_waited_for() -> None:
    kept = put(1)
    with pytest.raises(TypeError, match="a list of responses"):
        wait([1])
    with pytest.raises(TypeError, match="a list of responses"):
        wait(kept)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 and at most the number of responses, 1; got 2"):
        wait([kept], num_returns=2)
    with pytest.raises(ValueError, match="each response once"):
        wait([kept, kept])

    async def on_a_loop() -> None:
        wait([kept])

    with pytest.raises(RuntimeError, match=r"use `await asyncio\.wait"):
        asyncio.run(on_a_loop())
