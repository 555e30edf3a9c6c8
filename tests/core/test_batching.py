"""Batches: how they form, how results and errors are handed out, setters and streams."""

import asyncio
import copy
import gc
import pickle
import threading
from typing import Any

import cloudpickle
import pytest

from servd import deployment
from servd.batching import batch
from servd.calls.request_context import RequestContext, current_request
from servd.exceptions import ServdError
from servd.replica.methods import kind_of


class Recorder:
    """Remembers the batches it got."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    @batch(max_batch_size=3, batch_wait_timeout_s=0.01)
    async def double(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        return [2 * item for item in items]

    @batch(max_batch_size=4, batch_wait_timeout_s=0.01)
    async def named(self, a: list[int], b: Any = 7, *, c: Any = None) -> list[Any]:
        return [(a, b, c)] * len(a)

    @batch(max_batch_size=4, batch_wait_timeout_s=0.01)
    async def picky(self, items: list[Any]) -> list[Any]:
        if "bad" in items:
            raise ValueError("bad item")
        return [KeyError(item) if item == "alone" else item for item in items]

    @batch(max_batch_size=4, batch_wait_timeout_s=0.01, on_error="split")
    async def splitting(self, items: list[Any]) -> list[Any]:
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("bad item")
        return items

    @batch(max_batch_size=4, batch_wait_timeout_s=0.01)
    async def wrong(self, items: list[Any]) -> list[Any]:
        return [*items, 1]

    @batch(max_batch_size=2, batch_wait_timeout_s=0.01)
    async def stream(self, items: list[int]) -> Any:
        for step in range(3):
            yield [item * step for item in items]


async def test_full_batches_leave_at_once_and_the_rest_after_the_wait() -> None:
    recorder = Recorder()
    results = await asyncio.gather(*(recorder.double(n) for n in range(4)))
    assert results == [0, 2, 4, 6]
    assert recorder.batches == [[0, 1, 2], [3]]


async def test_queues_belong_to_instances() -> None:
    first, second = Recorder(), Recorder()
    await asyncio.gather(first.double(1), second.double(2))
    assert (first.batches, second.batches) == ([[1]], [[2]])


async def test_every_parameter_passed_becomes_a_list_and_defaults_stay() -> None:
    recorder = Recorder()
    assert await recorder.named(1) == ([1], 7, None)
    both = await asyncio.gather(recorder.named(1, 2, c=3), recorder.named(4, b=5, c=6))
    assert both[0] == ([1, 4], [2, 5], [3, 6])


async def test_calls_of_another_shape_make_another_batch() -> None:
    recorder = Recorder()
    results = await asyncio.gather(recorder.named(1), recorder.named(2, c=3))
    assert results == [([1], 7, None), ([2], 7, [3])]


async def test_a_batch_has_one_model_and_outlives_one_request() -> None:
    seen = []

    @batch(max_batch_size=3, batch_wait_timeout_s=0.02)
    async def read(items: list[int]) -> list[int]:
        request = current_request.get()
        seen.append((request.multiplexed_model_id, request.deadline, items))
        return items

    async def ask(model_id: str, deadline: float | None, item: int) -> int:
        current_request.set(RequestContext("r", "/", "app", model_id, deadline))
        return int(await read(item))

    now = asyncio.get_running_loop().time()
    asked = [("a", now + 9, 1), ("b", None, 2), ("a", now + 8, 3), ("b", now + 9, 4), ("a", now + 7, 5)]
    assert await asyncio.gather(*(ask(*one) for one in asked)) == [1, 2, 3, 4, 5]
    assert seen == [("a", now + 9, [1, 3, 5]), ("b", None, [2, 4])]


async def test_an_exception_is_everybodys_and_the_queue_goes_on() -> None:
    recorder = Recorder()
    results = await asyncio.gather(*(recorder.picky(x) for x in ("a", "bad")), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await recorder.picky("b") == "b"


async def test_an_exception_in_the_list_is_one_callers() -> None:
    recorder = Recorder()
    good, bad = await asyncio.gather(recorder.picky("a"), recorder.picky("alone"), return_exceptions=True)
    assert good == "a"
    assert isinstance(bad, KeyError)


async def test_split_finds_the_bad_item() -> None:
    recorder = Recorder()
    items = ["a", "b", "bad", "c"]
    results = await asyncio.gather(*(recorder.splitting(x) for x in items), return_exceptions=True)
    assert [str(result) for result in results] == ["a", "b", "bad item", "c"]
    assert recorder.batches == [items, ["a", "b"], ["bad", "c"], ["bad"], ["c"]]


async def test_a_wrong_count_names_both_numbers() -> None:
    recorder = Recorder()
    results = await asyncio.gather(recorder.wrong(1), recorder.wrong(2), return_exceptions=True)
    assert all(isinstance(result, ServdError) for result in results)
    assert "2 items and gave 3" in str(results[0])


async def test_cancelled_callers_are_left_out() -> None:
    recorder = Recorder()
    gone = asyncio.create_task(recorder.double(1))
    stays = asyncio.create_task(recorder.double(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 4
    assert recorder.batches == [[2]]
    assert await recorder.double(3) == 6


async def test_batches_of_one_queue_run_one_after_another_by_default() -> None:
    running = most = 0

    async def work(items: list[int]) -> list[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return items

    one = batch(work, max_batch_size=1)
    await asyncio.gather(*(one(n) for n in range(4)))
    assert most == 1
    three = batch(work, max_batch_size=1, max_concurrent_batches=3)
    await asyncio.gather(*(three(n) for n in range(6)))
    assert most == 3


def a_reader() -> tuple[Any, list[list[str]]]:
    """A batched function whose batches hold five letters, and what it was called with."""
    seen: list[list[str]] = []

    @batch(max_batch_size=5, batch_wait_timeout_s=0.01, batch_size_fn=lambda items: sum(map(len, items)))
    async def read(texts: list[str]) -> list[str]:
        seen.append(texts)
        return texts

    return read, seen


async def test_sizes_may_be_measured() -> None:
    read, seen = a_reader()
    await asyncio.gather(read("aaa"), read("bb"), read("ccccc"), read("d"))
    assert seen == [["aaa", "bb"], ["ccccc"], ["d"]]


async def test_an_item_that_fits_into_no_batch_is_its_callers_error() -> None:
    read, seen = a_reader()
    before = asyncio.create_task(read("aaa"))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="item of size 8 fits into no batch, max_batch_size is 5"):
        await read("cccccccc")
    read.set_max_batch_size(8)
    assert await asyncio.gather(before, read("cccccccc")) == ["aaa", "cccccccc"]
    assert seen == [["aaa"], ["cccccccc"]]


async def test_setters_hold_from_the_next_batch_on() -> None:
    seen: list[Any] = []

    @batch(max_batch_size=10, batch_wait_timeout_s=60)
    async def read(items: list[int]) -> list[int]:
        seen.append(items)
        return items

    read.set_batch_wait_timeout_s(0)
    read.set_max_batch_size(2)
    await asyncio.gather(*(read(n) for n in range(3)))
    assert seen == [[0, 1], [2]]
    with pytest.raises(ValueError):
        read.set_max_batch_size(0)
    with pytest.raises(TypeError):
        Recorder().double.set_batch_wait_timeout_s("x")


async def test_streams_are_dealt_out() -> None:
    recorder = Recorder()

    async def read(n: int) -> list[int]:
        return [element async for element in recorder.stream(n)]

    assert await asyncio.gather(read(1), read(10)) == [[0, 1, 2], [0, 10, 20]]


@pytest.mark.parametrize("end", [StopIteration, StopIteration(), StopAsyncIteration])
async def test_a_stream_ends_for_one_before_the_others(end: Any) -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=0.5)
    async def count(limits: list[int]) -> Any:
        for n in range(max(limits)):
            yield [n if n < limit else end for limit in limits]

    async def read(n: int) -> list[int]:
        return [element async for element in count(n)]

    assert await asyncio.gather(read(1), read(3)) == [[0], [0, 1, 2]]


async def test_a_stream_that_fails_fails_for_all() -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=0.01)
    async def broken(items: list[int]) -> Any:
        yield items
        raise ValueError("half-way")

    async def read(n: int) -> list[int]:
        return [element async for element in broken(n)]

    results = await asyncio.gather(read(1), read(2), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": "x"}, TypeError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"batch_wait_timeout_s": -1}, ValueError),
        ({"batch_wait_timeout_s": "x"}, TypeError),
        ({"max_concurrent_batches": 0}, ValueError),
        ({"on_error": "ignore"}, ValueError),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        batch(**options)


def test_integral_floats_are_integers() -> None:
    batch(max_batch_size=4.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [1, "x", len, lambda items: items])
def test_only_async_functions(target: Any) -> None:
    with pytest.raises(TypeError):
        batch()(target)


def test_decorated_functions_travel_by_value() -> None:
    async def local(items: list[int]) -> list[int]:
        return items

    copy = pickle.loads(cloudpickle.dumps(batch(local, max_batch_size=2)))
    assert asyncio.run(copy(3)) == 3

    async def steps(items: list[int]) -> Any:
        for n in range(2):
            yield [item + n for item in items]

    async def read(function: Any) -> list[int]:
        return [element async for element in function(3)]

    assert asyncio.run(read(pickle.loads(cloudpickle.dumps(batch(steps))))) == [3, 4]


def test_the_cap_makes_room_for_batches(caplog: pytest.LogCaptureFixture) -> None:
    class Wide:
        @batch(max_batch_size=64, max_concurrent_batches=4)
        async def predict(self, items: list[int]) -> list[int]:
            return items

    assert deployment(Wide).max_concurrent_queries == 256
    assert not caplog.records
    assert deployment(max_concurrent_queries=10)(Wide).max_concurrent_queries == 10
    assert "Wide: max_concurrent_queries=10 is below the 256 requests that fill its batches" in caplog.text


class Base:
    @batch(max_batch_size=2)
    async def run(self, items: list[int]) -> list[str]:
        return [f"base {item}" for item in items]


class Derived(Base):
    @batch(max_batch_size=2)
    async def run(self, items: list[int]) -> list[str]:
        return [await super(Derived, self).run(item) + "!" for item in items]


def made_with(word: str) -> Any:
    @batch(max_batch_size=2)
    async def made(self: Any, items: list[int]) -> list[str]:
        return [f"{word} {item}" for item in items]

    return made


class Twins:
    a, b = made_with("a"), made_with("b")


class Slotted:
    __slots__ = ("word",)

    def __init__(self, word: str) -> None:
        self.word = word

    @batch(max_batch_size=2)
    async def run(this, items: list[int]) -> list[str]:
        return [f"{this.word} {item}" for item in items]


async def test_queues_belong_to_the_function_not_to_its_name() -> None:
    twins = Twins()
    assert await asyncio.gather(twins.a(1), twins.b(1)) == ["a 1", "b 1"]
    # an override that calls what it overrides
    assert await asyncio.wait_for(Derived().run(1), 5) == "base 1!"


async def test_a_copy_of_an_instance_has_queues_of_its_own() -> None:
    first = Slotted("first"), Recorder()
    assert await first[0].run(1) == "first 1"
    assert await first[1].double(1) == 2
    second = copy.copy(first[1])
    second.batches = []
    assert await second.double(2) == 4
    assert (first[1].batches, second.batches) == ([[1]], [[2]])
    # what is kept for an instance does not travel with it
    assert await pickle.loads(pickle.dumps(first[1])).double(3) == 6
    assert await copy.deepcopy(first[1]).double(3) == 6


@pytest.mark.parametrize("size", [None, "three", float("nan"), -1, [1]])
async def test_a_wrong_size_is_its_callers_error_and_the_queue_goes_on(size: Any) -> None:
    @batch(max_batch_size=4, batch_wait_timeout_s=0.01, batch_size_fn=lambda items: size if items == ["odd"] else 1)
    async def same(items: list[str]) -> list[str]:
        return items

    before = asyncio.create_task(same("a"))
    await asyncio.sleep(0)
    with pytest.raises(TypeError, match="batch_size_fn must give a number of at least 0"):
        await same("odd")
    assert await asyncio.wait_for(asyncio.gather(before, same("b")), 5) == ["a", "b"]


@pytest.mark.parametrize("waits_between", [True, False], ids=["waits for ever", "never stops"])
async def test_a_stream_that_nobody_listens_to_frees_the_queue(waits_between: bool) -> None:
    closed = []

    @batch(max_batch_size=2, batch_wait_timeout_s=0.0)
    async def count(items: list[int]) -> Any:
        try:
            yield items
            while items != [0]:
                await (asyncio.Event().wait() if waits_between else asyncio.sleep(0))
                yield items
        finally:
            closed.append(items)

    first, second = count(1), count(2)
    assert await asyncio.gather(anext(first), anext(second)) == [1, 2]
    await first.aclose()
    assert await asyncio.wait_for(anext(second), 5) == 2 if not waits_between else not closed
    await second.aclose()
    assert [item async for item in count(0)] == [0]
    assert closed == [[1, 2], [0]]


async def test_the_item_of_a_stream_waits_from_the_call_on() -> None:
    batches = []

    @batch(max_batch_size=3, batch_wait_timeout_s=60)
    async def count(items: list[int]) -> Any:
        batches.append(items)
        yield items

    streams = [count(n) for n in range(3)]
    await asyncio.sleep(0.01)
    assert batches == [[0, 1, 2]]
    assert [await anext(stream) for stream in streams] == [0, 1, 2]


@pytest.mark.parametrize("thread", ["of the loop", "another"])
async def test_a_stream_that_never_begins_leaves_no_item(thread: str, caplog: pytest.LogCaptureFixture) -> None:
    batches = []

    @batch(max_batch_size=2, batch_wait_timeout_s=0.05)
    async def count(items: list[int]) -> Any:
        batches.append(items)
        yield items
        raise ValueError("nobody hears of this")

    streams = [count(1)]
    if thread == "another":
        collector = threading.Thread(target=streams.clear)
        collector.start()
        collector.join()
    else:
        streams.clear()
    await asyncio.sleep(0)
    assert [item async for item in _first_of(count(2))] == [2]
    assert batches == [[2]]
    gc.collect()
    assert not caplog.records


async def _first_of(stream: Any) -> Any:
    yield await anext(stream)
    await stream.aclose()


def test_a_stream_may_be_called_off_a_loop_and_on_one_that_ended() -> None:
    @batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def count(items: list[int]) -> Any:
        yield items

    async def called(n: int) -> Any:
        return count(n)

    async def items_of(stream: Any) -> list[int]:
        return [item async for item in stream]

    assert asyncio.run(items_of(count(1))) == [1]
    begun_elsewhere, forgotten = asyncio.run(called(2)), asyncio.run(called(3))
    del forgotten
    assert asyncio.run(items_of(begun_elsewhere)) == [2]


async def test_wrong_arguments_of_a_stream_are_its_calls_error() -> None:
    with pytest.raises(TypeError):
        Recorder().stream()


def test_a_batched_generator_is_a_handler_that_streams() -> None:
    assert kind_of(Recorder.stream) == kind_of(Recorder().stream) == "async generator"
    assert kind_of(Recorder.double) == "async"
