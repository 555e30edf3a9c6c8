"""`run(local=True)`: the rules of replicas and callers hold in one process too, and so do their errors."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import servd
import servd.context
from servd.exceptions import BackPressureError, RequestCancelledError, ServdError, UserCodeError
from servd.handle import DeploymentHandle


class NotMine(Exception):
    """Cannot be rebuilt elsewhere."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} {code}")
        self.lock = threading.Lock()


@servd.deployment
class Odd:
    async def down(self, levels: int) -> int:
        own = servd.get_deployment_handle("Odd")
        return 0 if not levels else 1 + await own.down.remote(levels - 1)

    def give(self, value: Any) -> Any:
        return value

    def unpicklable(self) -> Any:
        return threading.Lock()

    def raise_not_mine(self) -> None:
        raise NotMine(7, reason="because")

    def exits(self) -> None:
        raise SystemExit(3)

    async def half(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("in the middle")

    @servd.batch(max_batch_size=4, batch_wait_timeout_s=0.01)
    async def miscount(self, items: list[int]) -> list[int]:
        return items[1:]

    @servd.multiplexed(max_num_models_per_replica=1)
    async def model(self, model_id: str) -> str:
        raise FileNotFoundError(model_id)

    async def use_model(self) -> str:
        found: str = await self.model(servd.get_multiplexed_model_id())
        return found

    async def blocks(self) -> Any:
        return servd.get_deployment_handle("Odd").give.remote(1).result()


@servd.deployment
class Slow:
    def __init__(self) -> None:
        self.begun, self.cancelled = 0, 0

    async def hold(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def counts(self) -> tuple[int, int]:
        return self.begun, self.cancelled


@servd.deployment
class Parent:
    def __init__(self, slow: DeploymentHandle) -> None:
        self.slow = slow

    async def hold_two(self) -> Any:
        awaited, self.unawaited = self.slow.hold.remote(), self.slow.hold.remote()
        return await awaited

    async def counts(self) -> Any:
        return await self.slow.counts.remote()


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    servd.delete("default")


def test_a_circle_is_named() -> None:
    handle = servd.run(Odd.options(max_ongoing_requests=2).bind(), local=True)
    assert handle.down.remote(1).result(5) == 1
    with pytest.raises(ServdError, match="default_Odd -> default_Odd -> default_Odd"):
        handle.down.remote(2).result(5)
    assert handle.down.remote(1).result(5) == 1


def test_calls_without_end_stop() -> None:
    handle = servd.run(Odd.bind(), local=True)
    with pytest.raises(ServdError, match="64"):
        handle.down.remote(1000).result(5)
    # each stays below the depth, together they hold every slot
    for call in [handle.down.remote(1000) for _ in range(5)]:
        with pytest.raises(ServdError, match=r"can never run|deeper than 64"):
            call.result(5)
    assert handle.down.remote(10).result(5) == 10


def test_a_full_line_pushes_back() -> None:
    handle = servd.run(Slow.options(max_ongoing_requests=1, max_queued_requests=1).bind(), local=True)
    first, waiting = handle.hold.remote(), handle.counts.remote()
    with pytest.raises(BackPressureError, match="1 requests waiting, 1 allowed"):
        handle.counts.remote().result(5)
    first.cancel()
    assert waiting.result(5) == (1, 1)


def test_cancelling_a_call_cancels_the_calls_it_made() -> None:
    handle = servd.run(Parent.bind(Slow.bind()), local=True)
    call = handle.hold_two.remote()
    while handle.counts.remote().result(5) != (2, 0):
        pass
    call.cancel()
    with pytest.raises(RequestCancelledError):
        call.result(5)
    while handle.counts.remote().result(5) != (2, 2):
        pass


def test_what_goes_wrong_is_told_as_by_a_replica() -> None:
    handle = servd.run(Odd.bind(), local=True)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (handle.nothing.remote(), ServdError, "no method 'nothing'"),
        (handle.unpicklable.remote(), TypeError, "lock"),
        (handle.raise_not_mine.remote(), UserCodeError, "because 7"),
        (handle.exits.remote(), UserCodeError, "SystemExit: 3"),
        (handle.half.remote(), TypeError, "stream=True"),
        (handle.miscount.remote(1), ServdError, "got 1 items and gave 0 results"),
        (handle.options(multiplexed_model_id="m").use_model.remote(), FileNotFoundError, "m"),
        (handle.use_model.remote(), ValueError, "names no model"),
        (handle.blocks.remote(), RuntimeError, "await"),
    ]
    for call, error, text in wrong:
        with pytest.raises(error, match=text):
            call.result(5)
    with pytest.raises(TypeError, match="lock"):
        handle.give.remote(threading.Lock()).result(5)
    with pytest.raises(TypeError, match="no generator"):
        list(handle.options(stream=True).give.remote(1))
    items = handle.options(stream=True).half.remote()
    assert next(items) == 1
    with pytest.raises(ValueError, match="in the middle"):
        next(items)
    assert handle.give.remote(1).result(5) == 1


WORD: ContextVar[str] = ContextVar("word", default="nothing")


@servd.deployment
class Spans:
    def words(self) -> Iterator[str]:
        token = WORD.set("set")
        yield WORD.get()
        yield WORD.get()
        WORD.reset(token)

    async def async_words(self) -> AsyncIterator[str]:
        token = WORD.set("set")
        yield WORD.get()
        yield WORD.get()
        WORD.reset(token)


@pytest.mark.parametrize("method", ["words", "async_words"])
def test_generators_live_in_one_context(method: str) -> None:
    handle = servd.run(Spans.bind(), local=True)
    assert list(handle.options(method_name=method, stream=True).remote()) == ["set", "set"]


ENDED = threading.Event()


@servd.deployment
class Stubborn:
    def __init__(self, inner: DeploymentHandle) -> None:
        self.inner = inner

    async def __call__(self) -> str:
        call = self.inner.wait.remote()
        try:
            await call
        except (asyncio.CancelledError, RequestCancelledError):
            # goes on all the same
            await asyncio.to_thread(ENDED.wait, 5)
        return "late"


@servd.deployment
class Waits:
    async def wait(self) -> None:
        STARTED.set()
        try:
            await asyncio.Event().wait()
        finally:
            ENDED.set()


STARTED = threading.Event()


def test_the_calls_of_a_cancelled_one_end_at_once_whatever_it_does() -> None:
    handle = servd.run(Stubborn.bind(Waits.bind()), local=True)
    call = handle.remote()
    assert STARTED.wait(5)
    call.cancel()
    assert ENDED.wait(5)
    with pytest.raises(RequestCancelledError):
        call.result(5)


def test_a_local_replica_has_the_first_rank() -> None:
    @servd.deployment
    class Ranked:
        def reconfigure(self, user_config: Any, rank: Any) -> None:
            self.told = user_config, rank.rank

        def __call__(self) -> Any:
            context = servd.get_replica_context()
            return self.told, context.rank.rank, context.world_size, context.deployment

    assert servd.run(Ranked.bind(), local=True).remote().result() == ((None, 0), 0, 1, "Ranked")


def test_what_is_said_of_the_request_is_read_under_ray_serves_names() -> None:
    @servd.deployment
    class Asked:
        def __call__(self) -> Any:
            about = servd.context._get_serve_request_context()
            same = servd.context._serve_request_context.get() is about
            return same, about.app_name, about.multiplexed_model_id, bool(about.request_id)

    handle = servd.run(Asked.bind(), local=True)
    assert handle.options(multiplexed_model_id="m").remote().result() == (True, "default", "m", True)
    assert servd.context._get_serve_request_context().request_id == ""


class Asking:
    """Asks what it is told to, in its constructor and later."""

    def __init__(self, ask: Callable[[Any], Any], other: Any = None) -> None:
        self.other = other
        self.found = [ask(self)]

    def on_replica_start(self) -> None:
        self.found.append(of_replica(self))

    def reconfigure(self, _: Any) -> None:
        self.found.append(of_replica(self))

    def __call__(self) -> Any:
        return [*self.found, of_replica(self)]


class AskingOnLoop(Asking):
    async def __init__(self, ask: Callable[[Any], Any], other: Any = None) -> None:
        await asyncio.sleep(0)
        super().__init__(ask, other)

    async def __call__(self) -> Any:
        return super().__call__()


def of_nobody(_: Any) -> str:
    return "nobody"


def of_replica(_: Any) -> str:
    return servd.get_replica_context().deployment


def of_other(asking: Any) -> Any:
    return asking.other.give.remote(1).result(5)


def of_other_by_name(_: Any) -> Any:
    return servd.get_deployment_handle("Odd")


@pytest.mark.parametrize("kind", [Asking, AskingOnLoop])
@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (of_replica, r"`get_replica_context\(\)`"),
        (of_other_by_name, "`get_deployment_handle` without an app_name"),
        (of_other, "calling a handle or using the client"),
    ],
)
def test_a_preloaded_constructor_is_in_no_replica(ask: Any, what: str, kind: type) -> None:
    model = servd.deployment(name="Model", preload=True)(kind)
    with pytest.raises(ServdError, match=f"{what} does not work in the constructor of Model, which has `preload`"):
        servd.run(model.bind(ask, Odd.bind()), local=True)
    handle = servd.run(model.bind(of_nobody), local=True)
    assert handle.remote().result(5) == ["nobody", "Model", "Model"]


@pytest.mark.parametrize("kind", [Asking, AskingOnLoop])
@pytest.mark.parametrize("preload", [False, True])
def test_what_runs_behind_a_preloaded_constructor_is_in_a_replica(preload: bool, kind: type) -> None:
    model = servd.deployment(name="Model", preload=preload, user_config={})(kind)
    ask, first = (of_nobody, "nobody") if preload else (of_replica, "Model")
    assert servd.run(model.bind(ask), local=True).remote().result(5) == [first, "Model", "Model", "Model"]
