"""Instances that are made before there is a replica: what forbids to fork with them, and what fails in their constructor."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from servd.api import get_app_handle, get_deployment_handle
from servd.app.deployment import Deployment, make_deployment
from servd.batching import batch
from servd.calls import replica_context
from servd.calls.replica_context import get_replica_context, refuse_in_template, set_template_of
from servd.exceptions import ServdError
from servd.ground.ids import DeploymentID
from servd.handle import DeploymentHandle
from servd.multiplex import multiplexed
from servd.replica import builder
from servd.replica.instances import new_instance, new_preloaded
from servd.replica.methods import are_handlers_sync
from servd.replica.sync_threads import SyncThreads


@pytest.fixture(autouse=True)
def _template() -> Iterator[None]:
    assert replica_context.replica_context() is None
    set_template_of("Model")
    yield
    set_template_of("")


def a_deployment(construct: Any, *, is_async: bool = False) -> Deployment:
    """Of a class whose constructor does this; with an async handler or without any."""

    async def on_loop(self: Any) -> None:
        self.made = construct()

    def plainly(self: Any) -> None:
        self.made = construct()

    body = {"__init__": on_loop if is_async else plainly}
    deployment: Deployment = make_deployment(type("Model", (), body), {})
    return deployment


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_constructor_makes_is_there(is_async: bool) -> None:
    made = new_preloaded(a_deployment(lambda: [1], is_async=is_async))
    assert (made.value.made, made.unfit_reason) == ([1], "")


def test_a_constructor_sees_a_loop_where_it_would_in_a_replica() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        new_preloaded(a_deployment(asyncio.get_running_loop))
    assert new_preloaded(a_deployment(asyncio.Queue, is_async=True)).unfit_reason == ""
    assert new_preloaded(a_deployment(lambda: asyncio.run(asyncio.sleep(0)))).unfit_reason == ""


def test_tasks_that_are_left() -> None:
    made = new_preloaded(a_deployment(lambda: asyncio.ensure_future(asyncio.Event().wait()), is_async=True))
    assert made.unfit_reason == "the constructor left 1 task(s) running; start them in `on_replica_start(self)`"
    loop = made.value.made.get_loop()
    made.value.made.cancel()
    loop.run_until_complete(asyncio.wait([made.value.made]))
    loop.close()


def test_a_loop_that_is_open() -> None:
    made = new_preloaded(a_deployment(asyncio.new_event_loop))
    assert made.unfit_reason == "the constructor left an event loop open; open it in `on_replica_start(self)`"
    made.value.made.close()


def test_a_loop_of_somebody_else_is_no_obstacle() -> None:
    loop = asyncio.new_event_loop()
    assert new_preloaded(a_deployment(list)).unfit_reason == ""
    loop.close()


def test_a_loop_that_is_kept() -> None:
    made = new_preloaded(a_deployment(asyncio.get_running_loop, is_async=True))
    expected = "the constructor's event loop is kept by what it made; make that in `on_replica_start(self)`"
    assert made.unfit_reason == expected


@pytest.mark.parametrize("error", [ValueError("no weights"), SystemExit("enough")])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_constructor_raises(error: BaseException, is_async: bool) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        new_preloaded(a_deployment(fail, is_async=is_async))


@pytest.mark.parametrize(
    ("construct", "what"),
    [
        (get_replica_context, r"`get_replica_context\(\)`"),
        (lambda: DeploymentHandle(DeploymentID("D", "app")).remote(), "calling a handle or using the client"),
        (lambda: get_app_handle("app"), "calling a handle or using the client"),
        (lambda: get_deployment_handle("Other"), "`get_deployment_handle` without an app_name"),
    ],
)
def test_what_belongs_to_a_replica_is_refused(construct: Any, what: str) -> None:
    with pytest.raises(ServdError, match=f"{what} does not work in the constructor of Model, which has `preload`"):
        new_preloaded(a_deployment(construct))


def test_what_is_forked_from_a_template_is_no_constructor() -> None:
    order: Any = SimpleNamespace(preload="Model", log_dir="/nowhere")
    built: Any = SimpleNamespace(deployments={"Model": a_deployment(lambda: 1)})
    assert builder._preload(order, built)[1] == ""
    # an autoscaling policy may
    refuse_in_template("calling a handle or using the client")


class Compared(type):
    """Its classes cannot be keys."""

    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


def test_a_class_that_cannot_be_looked_up_is_looked_at_each_time() -> None:
    class Handlers(metaclass=Compared):
        def __call__(self) -> str:
            return "sync"

    assert are_handlers_sync(Handlers)
    assert are_handlers_sync(Handlers)


def test_a_batched_method_can_be_used_before_the_fork_and_after_it() -> None:
    class Model:
        async def __init__(self) -> None:
            self.first = await asyncio.gather(self.double(1), self.double(2))

        @batch(max_batch_size=2, batch_wait_timeout_s=0.001)
        async def double(self, numbers: list[int]) -> list[int]:
            return [2 * number for number in numbers]

    made = new_preloaded(make_deployment(Model, {}))
    assert (made.value.first, made.unfit_reason) == ([2, 4], "")
    assert asyncio.run(made.value.double(3)) == 6


def test_a_multiplexed_function_says_why_it_does_not_work_in_the_template() -> None:
    @multiplexed
    async def get_model(model_id: str) -> str:
        return model_id

    with pytest.raises(ServdError, match="does not work in the constructor of Model, which has `preload`"):
        asyncio.run(get_model("warm"))


class GradMode:
    """PyTorch's switch, which each thread has for itself."""

    def __init__(self) -> None:
        self._own = threading.local()

    def is_grad_enabled(self) -> bool:
        return getattr(self._own, "is_enabled", True)

    def set_grad_enabled(self, is_enabled: bool) -> None:
        self._own.is_enabled = is_enabled


@pytest.mark.parametrize("is_enabled", [False, True])
def test_what_a_preloaded_constructor_has_set_for_its_thread_holds_where_handlers_run(
    monkeypatch: pytest.MonkeyPatch, is_enabled: bool
) -> None:
    torch: Any = GradMode()
    monkeypatch.setitem(sys.modules, "torch", torch)
    deployment = a_deployment(lambda: torch.set_grad_enabled(is_enabled))

    async def seen_by_handlers() -> bool:
        threads = SyncThreads(1)
        preloaded = new_preloaded(deployment).value
        assert await new_instance(deployment, threads.run_first, preloaded=preloaded) is preloaded
        found: bool = await threads.run(torch.is_grad_enabled)
        return found

    assert asyncio.run(seen_by_handlers()) is is_enabled
