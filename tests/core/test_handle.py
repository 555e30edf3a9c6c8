"""Handles and responses against a fake caller: both styles, threads, arguments that are results, cancelling."""

import asyncio
import concurrent.futures
import inspect
import pickle
import re
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from servd.calls import pickling
from servd.calls.process import install_process, installed_process, remove_process
from servd.calls.request_context import RequestContext, current_request
from servd.calls.response import DeploymentResponse, Ref, get
from servd.exceptions import NoRouteError, RemoteFailure, RequestCancelledError, ServdError
from servd.ground.ids import DeploymentID
from servd.handle import (
    DeploymentHandle,
    RayServeDeploymentHandle,
    RayServeHandle,
    RayServeSyncHandle,
    bound_handle,
)


class FakeTicket:
    def __init__(self, work: "asyncio.Future[Any]", items: list[Any] | None = None) -> None:
        self.work, self.items = work, items

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        return pickling.dumps(await self.work)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items or []:
            if isinstance(item, Exception):
                raise RemoteFailure(pickling.dump_exception(item))
            yield pickling.dumps(item)

    def when_sent(self, told: Callable[[], None]) -> None:
        told()

    def cancel(self) -> None:
        self.work.cancel()


class FakeCaller:
    """Answers calls by functions of (args, kwargs), by method name."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self.methods = methods
        self.contexts: list[tuple[str, str, RequestContext]] = []

    def submit_call(
        self, deployment: str, method: str, parts: list[Any], context: RequestContext, **options: Any
    ) -> FakeTicket:
        self.contexts.append((deployment, options["model_id"], context))
        args, kwargs = pickling.loads([bytes(part) for part in parts])
        if options["stream"]:
            return FakeTicket(asyncio.get_running_loop().create_future(), self.methods[method](*args, **kwargs))
        return FakeTicket(asyncio.ensure_future(self._run(method, args, kwargs)))

    async def _run(self, method: str, args: Any, kwargs: Any) -> Any:
        try:
            if method not in self.methods:
                raise NoRouteError("deployment app_d does not exist")
            value = self.methods[method](*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        except NoRouteError:
            raise
        except Exception as error:
            raise RemoteFailure(pickling.dump_exception(error)) from error


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def fail(text: str) -> None:
    raise ValueError(text)


async def read_nested(items: Any) -> Any:
    return type(items["x"][0]).__name__, await items["x"][0]


METHODS: dict[str, Callable[..., Any]] = {
    "__call__": lambda x=0: x + 1,
    "double": lambda x: 2 * x,
    "fail": fail,
    "wait": forever,
    "nested": read_nested,
    "count": lambda n: list(range(n)),
    "break_off": lambda: [1, ValueError("half-way")],
}


@pytest.fixture
async def caller() -> AsyncIterator[FakeCaller]:
    made = FakeCaller(**METHODS)
    install_process(made, asyncio.get_running_loop())
    yield made
    remove_process()


@pytest.fixture
def remote_loop() -> Iterator[FakeCaller]:
    """A caller whose loop runs in another thread, as in a driver."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = FakeCaller(**METHODS)
    install_process(made, loop, thread_id=thread.ident)
    yield made
    remove_process()

    async def cancel_all() -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def a_handle(kind: type[Any] = DeploymentHandle) -> Any:
    return kind(DeploymentID("d", "app"))


async def test_options_of_later_releases(caller: FakeCaller) -> None:
    ways = {"request_serialization": "msgpack", "_by_reference": False, "_prefer_local_routing": True}
    assert await a_handle().options(**ways).remote(1) == 2
    with pytest.raises(ValueError, match="cloudpickle, pickle, msgpack, orjson, got 'yaml'"):
        a_handle().options(response_serialization="yaml")
    with pytest.raises(NotImplementedError, match=r"no choose_replica here: .*session_id"):
        a_handle().choose_replica(1)
    caller.methods["dispatch"] = lambda x: -x
    assert await a_handle().dispatch.remote(1) == -1


@pytest.mark.parametrize("kind", [DeploymentHandle, RayServeHandle, RayServeDeploymentHandle, RayServeSyncHandle])
async def test_the_new_api_of_older_handles(caller: FakeCaller, kind: type[Any]) -> None:
    newer = a_handle(kind).options(use_new_handle_api=True, method_name="double")
    assert type(newer) is DeploymentHandle
    assert await newer.remote(2) == 4
    assert type(a_handle(kind).options(use_new_handle_api=False)) is kind


async def test_one_step(caller: FakeCaller) -> None:
    response = a_handle().remote(1)
    assert isinstance(response, DeploymentResponse)
    assert await response == 2
    assert await response == 2
    assert caller.contexts[0][0] == "app_d"


@pytest.mark.usefixtures("caller")
async def test_the_deployments_own_call_by_its_name() -> None:
    assert await a_handle().__call__.remote(1) == 2
    assert await a_handle().other.__call__.options(session_id="a").remote(1) == 2
    assert callable(a_handle())
    assert (a_handle().deployment_id.name, a_handle().deployment_id.app_name) == ("d", "app")
    assert not hasattr(a_handle().__call__, "__wrapped__")
    for mistake, said in ((a_handle(), "handle.remote("), (a_handle().other, "handle.other.remote(")):
        with pytest.raises(TypeError, match=re.escape(said)):
            mistake(1)
        with pytest.raises(TypeError, match=re.escape(said)):
            mistake.__call__(1)


@pytest.mark.parametrize("kind", [RayServeHandle, RayServeDeploymentHandle])
@pytest.mark.usefixtures("caller")
async def test_two_steps(kind: type[Any]) -> None:
    task = a_handle(kind).double.remote(4)
    ref = await task
    assert isinstance(ref, Ref)
    assert await ref == 8
    assert await (await task) == 8


@pytest.mark.usefixtures("caller")
async def test_two_step_calls_can_be_gathered() -> None:
    handle = a_handle(RayServeHandle)
    refs = await asyncio.gather(*(handle.remote(n) for n in range(3)))
    assert await asyncio.gather(*refs) == [1, 2, 3]


@pytest.mark.usefixtures("caller")
async def test_user_errors_arrive_as_their_own_class_with_the_remote_traceback() -> None:
    with pytest.raises(ValueError, match="boom") as caught:
        await a_handle().fail.remote("boom")
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.usefixtures("caller")
async def test_a_deployment_that_does_not_exist_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="app_d does not exist") as caught:
        await a_handle().nothing.remote()
    assert isinstance(caught.value, ServdError)


@pytest.mark.usefixtures("caller")
async def test_unawaited_results_as_arguments_arrive_as_values() -> None:
    handle = a_handle()
    assert await handle.double.remote(handle.remote(1)) == 4
    assert await handle.double.remote(a_handle(RayServeHandle).remote(1)) == 4


@pytest.mark.usefixtures("caller")
async def test_nested_results_arrive_as_refs() -> None:
    handle = a_handle()
    assert await handle.nested.remote({"x": [handle.remote(1)]}) == ("Ref", 2)
    assert await handle.nested.remote({"x": [a_handle(RayServeHandle).remote(1)]}) == ("Ref", 2)


@pytest.mark.usefixtures("caller")
async def test_the_error_of_an_argument_is_the_error_of_the_call() -> None:
    handle = a_handle()
    with pytest.raises(ValueError, match="first"):
        await handle.double.remote(handle.fail.remote("first"))


@pytest.mark.usefixtures("caller")
async def test_unpicklable_arguments_are_refused_at_the_caller() -> None:
    with pytest.raises(TypeError, match="cannot send"):
        a_handle().remote(threading.Lock())


@pytest.mark.usefixtures("caller")
async def test_a_cancelled_call_says_so() -> None:
    response = a_handle().wait.remote()
    response.cancel()
    with pytest.raises(RequestCancelledError):
        await response
    with pytest.raises(RequestCancelledError):
        await response


async def test_cancelling_who_waits_cancels_the_call(caller: FakeCaller) -> None:
    response = a_handle().wait.remote()

    async def wait() -> Any:
        return await response

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert response._ticket.work.cancelled()
    assert caller.contexts


@pytest.mark.usefixtures("caller")
async def test_result_on_a_loop_says_to_await() -> None:
    response = a_handle().remote(1)
    with pytest.raises(RuntimeError, match="await"):
        response.result()
    with pytest.raises(RuntimeError, match="await"):
        get(response)
    assert await response == 2


@pytest.mark.usefixtures("caller")
async def test_streams() -> None:
    handle = a_handle().options(stream=True)
    assert [item async for item in handle.count.remote(3)] == [0, 1, 2]
    with pytest.raises(TypeError, match="async for"):
        await handle.count.remote(3)
    with pytest.raises(TypeError):
        handle.count.remote(3).result()
    with pytest.raises(RuntimeError, match="async for"):
        list(handle.count.remote(3))


@pytest.mark.usefixtures("caller")
async def test_a_stream_that_breaks_off_gives_its_error_at_the_next_item() -> None:
    items = a_handle().options(stream=True).break_off.remote()
    assert await anext(items) == 1
    with pytest.raises(ValueError, match="half-way"):
        await anext(items)


async def test_the_model_id_belongs_to_the_handle_and_the_request_flows_on(caller: FakeCaller) -> None:
    request = RequestContext(request_id="r1", multiplexed_model_id="m0")
    token = current_request.set(request)
    try:
        await a_handle().options(multiplexed_model_id="m1").remote(1)
        await a_handle().remote(1)
    finally:
        current_request.reset(token)
    assert [(model, context.request_id) for _, model, context in caller.contexts] == [("m1", "r1"), ("m0", "r1")]


@pytest.mark.usefixtures("caller")
async def test_calls_nested_too_deep_are_refused() -> None:
    token = current_request.set(RequestContext(depth=64))
    try:
        with pytest.raises(ServdError, match="deeper than 64"):
            a_handle().remote(1)
    finally:
        current_request.reset(token)


@pytest.mark.usefixtures("remote_loop")
def test_a_thread_without_loop_waits_for_results() -> None:
    handle = a_handle(RayServeSyncHandle)
    assert handle.remote(1).result(5) == 2
    assert get([handle.remote(1), handle.double.remote(5)], timeout=5) == [2, 10]
    assert get(a_handle(RayServeHandle).remote(2)) == 3
    assert get(handle.double.remote(handle.remote(1))) == 4
    with pytest.raises(ValueError, match="boom"):
        handle.fail.remote("boom").result()


@pytest.mark.usefixtures("remote_loop")
def test_waiting_too_long_is_a_timeout_and_the_call_goes_on() -> None:
    response = a_handle().wait.remote()
    with pytest.raises(TimeoutError, match="the call goes on"):
        response.result(0.01)
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(5)


@pytest.mark.usefixtures("remote_loop")
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_call_with_the_result_of_another_holds_nobody_up(is_nested: bool) -> None:
    before = a_handle().wait.remote()
    response = a_handle(RayServeSyncHandle).double.remote([before] if is_nested else before)
    with pytest.raises(TimeoutError):
        response.result(0.01)
    before.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(5)


@pytest.mark.usefixtures("remote_loop")
def test_streams_are_read_from_a_thread() -> None:
    assert list(a_handle().options(stream=True).count.remote(3)) == [0, 1, 2]


@pytest.mark.usefixtures("remote_loop")
def test_responses_are_awaited_in_any_loop() -> None:
    response = a_handle().remote(1)

    async def main() -> Any:
        items = [item async for item in a_handle().options(stream=True).count.remote(2)]
        ref = await a_handle(RayServeHandle).remote(5)
        return await response, await response, await ref, items

    assert asyncio.run(main()) == (2, 2, 6, [0, 1])
    assert response.result() == 2


def test_handles_survive_pickling() -> None:
    handle = a_handle(RayServeDeploymentHandle).options(method_name="m", multiplexed_model_id="x", stream=True)
    copy = pickle.loads(pickle.dumps(handle))
    assert copy == handle
    assert copy.deployment_name == "app_d"
    assert type(copy) is RayServeDeploymentHandle


def test_a_response_that_is_not_there_yet_cannot_be_pickled() -> None:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    with pytest.raises(TypeError, match="await"):
        pickle.dumps(DeploymentResponse(None, future=future))


def test_the_environment_chooses_the_style_of_unannotated_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    target = DeploymentID("d", "app")
    assert type(bound_handle(target, "")) is DeploymentHandle
    monkeypatch.setenv("SERVD_LEGACY_HANDLES", "1")
    assert type(bound_handle(target, "")) is RayServeDeploymentHandle
    assert type(bound_handle(target, "DeploymentHandle")) is DeploymentHandle
    monkeypatch.setenv("SERVE_DEPLOYMENT_HANDLE_IS_SYNC", "1")
    assert type(bound_handle(target, "")) is RayServeSyncHandle


@pytest.mark.usefixtures("remote_loop")
def test_what_ray_serve_makes_object_refs_of_is_taken_by_get() -> None:
    assert get(a_handle().remote(1)._to_object_ref_sync(), timeout=5) == 2
    refs = list(a_handle().options(stream=True).count.remote(3)._to_object_ref_gen_sync())
    assert get(refs) == [0, 1, 2]


@pytest.mark.usefixtures("caller")
async def test_what_ray_serve_makes_object_refs_of_is_awaited_and_passed_on() -> None:
    ref = await a_handle().remote(1)._to_object_ref()
    assert await a_handle().double.remote(ref) == 4
    assert await ref == 2
    refs = await a_handle().options(stream=True).count.remote(3)._to_object_ref_gen()
    assert [await one async for one in refs] == [0, 1, 2]


def test_nothing_is_installed_between_tests() -> None:
    assert installed_process() is None


async def test_a_call_names_the_request_that_it_is_made_for(caller: FakeCaller) -> None:
    current_request.set(RequestContext("of-the-request"))
    handle = a_handle()
    made = [handle.remote(1), handle.remote(handle.remote(1)), handle.options(stream=True).count.remote(2)]
    assert [one.request_id for one in made] == ["of-the-request"] * 3
    assert await made[1] == 3
    assert {context.request_id for *_, context in caller.contexts} == {"of-the-request"}


@pytest.mark.parametrize("kind", [DeploymentHandle, RayServeSyncHandle])
def test_a_call_for_no_request_is_one_of_its_own(remote_loop: FakeCaller, kind: Any) -> None:
    first, second = a_handle(kind).remote(1), a_handle(kind).remote(1)
    assert (first.result(), second.result()) == (2, 2)
    assert [context.request_id for *_, context in remote_loop.contexts] == [first.request_id, second.request_id]
    assert len(first.request_id) == 36
    assert first.request_id != second.request_id
    assert current_request.get().request_id == ""


async def test_whether_a_call_was_cancelled(caller: FakeCaller) -> None:
    for response in (a_handle().wait.remote(), a_handle().options(stream=True).count.remote(1)):
        assert not response.cancelled()
        response.cancel()
        assert response.cancelled()
    assert len(caller.contexts) == 2


def test_what_run_gives_is_a_handle_of_today_too() -> None:
    assert isinstance(a_handle(RayServeSyncHandle), DeploymentHandle)
    assert not isinstance(a_handle(RayServeHandle), DeploymentHandle)


def test_a_session_is_a_string() -> None:
    with pytest.raises(TypeError, match="session_id is a string, got 5"):
        a_handle().options(session_id=5)  # type: ignore[arg-type]
