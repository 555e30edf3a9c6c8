import asyncio
import functools
import gc
import re
import signal
import subprocess
import sys
import weakref
from typing import Any

import pytest

from servd.calls import caller, traced
from servd.calls.caller import Caller
from servd.calls.failures import TimeLimitError
from servd.calls.pickling import dumps, load_exception, loads
from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.exceptions import BackPressureError, NoRouteError, RemoteFailure, RequestCancelledError
from servd.observability.described import name_of
from servd.replica.exchange import HttpExchange
from servd.replica.handle_call import HandleCall
from servd.wire.messages import DeploymentTargets, Routing
from tests.fakes import Room, new_address, routing_for, targets_for, wait_until
from tests.odd_errors import KINDS, PLACES, LeavesWhenUnpickled, raise_odd
from tests.rooms.test_http1_lane import split


def arguments(*args: Any) -> list[Any]:
    return dumps((args, {}))


async def test_handle_call_and_its_error() -> None:
    async def double(value: Any) -> Any:
        return value * 2

    async def fail() -> None:
        raise KeyError("no")

    async with Room() as room:
        room.route(room.replica(methods={"double": double, "fail": fail}))
        caller = room.caller
        parts = await caller.submit_call("app_Echo", "double", arguments(b"x" * 300_000), NO_REQUEST)
        assert loads(parts) == b"x" * 600_000
        with pytest.raises(RemoteFailure) as failure:
            await caller.submit_call("app_Echo", "fail", arguments(), NO_REQUEST)
        assert isinstance(load_exception(failure.value.parts), KeyError)


async def test_slots_are_given_back_whatever_the_end_of_a_request_does() -> None:
    def broken() -> None:
        raise RuntimeError("at the end")

    async def say() -> str:
        current_request.get().when_over(broken)
        return "said"

    async def serve(exchange: HttpExchange) -> None:
        exchange.context.when_over(broken)
        exchange.finish(200, [], b"said")

    ends: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: ends.append(str(about.get("exception"))))
    async with Room() as room, asyncio.timeout(5):
        room.route(room.replica(serve, {"say": say}, limit=1))
        for _ in range(2):
            assert loads(await room.caller.submit_call("app_Echo", "say", arguments(), NO_REQUEST)) == "said"
            assert (await room.get()).endswith(b"said")
    assert set(ends) <= {"at the end"}


async def test_calls_of_processes_without_traces_do_nothing_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    new_ticket = traced.new_ticket
    monkeypatch.setattr(traced, "new_ticket", lambda *call: (made.append(call[1]), new_ticket(*call))[1])

    async def say() -> str:
        return "said"

    async with Room() as room:
        room.route(room.replica(methods={"say": say}))
        for has_met in (False, True):
            monkeypatch.setattr("servd.observability.spans.has_met_traces", has_met)
            assert loads(await room.caller.submit_call("app_Echo", "say", arguments(), NO_REQUEST)) == "said"
            assert made == ["app_Echo"] * has_met


async def test_streaming_call_with_credit() -> None:
    produced = 0

    async def numbers(count: int) -> Any:
        nonlocal produced
        for number in range(count):
            produced = number
            yield b"x" * 100_000

    async def nothing() -> None:
        pass

    async with Room() as room:
        room.route(room.replica(methods={"numbers": numbers, "nothing": nothing}))
        ticket = room.caller.submit_call("app_Echo", "numbers", arguments(100), NO_REQUEST, stream=True)
        items = aiter(ticket)
        await anext(items)
        await wait_until(lambda: produced >= 10)
        for _ in range(20):
            # the replica goes on with others meanwhile
            await room.caller.submit_call("app_Echo", "nothing", arguments(), NO_REQUEST)
        assert produced < 20, "no more than the credit is produced ahead"
        count = 1
        async for _ in items:
            count += 1
        assert count == 100


async def test_a_stream_that_is_taken_back_holds_its_slot_until_its_generator_has_ended() -> None:
    go_on, happened = asyncio.Event(), list[str]()

    async def numbers() -> Any:
        try:
            while True:
                happened.append("item")
                yield b"x" * 1_000_000
        finally:
            await go_on.wait()
            happened.append("generator ended")

    async def following() -> None:
        happened.append("next one")

    async with Room() as room:
        address = room.replica(methods={"numbers": numbers, "following": following}, limit=1)
        room.route(address)
        ticket = room.caller.submit_call("app_Echo", "numbers", arguments(), NO_REQUEST, stream=True)
        await wait_until(lambda: len(happened) >= 2)
        # the generator waits at its `yield`: nobody takes what it has given
        (peer,) = room.servers[address]._callers()
        (work,) = peer.open.values()
        await wait_until(lambda: isinstance(work, HandleCall) and work._writer is not None)
        happened.clear()
        ticket.cancel()
        later = room.caller.submit_call("app_Echo", "following", arguments(), NO_REQUEST)
        await wait_until(lambda: room.caller.queued() == {"app_Echo": 1} or bool(happened))
        go_on.set()
        await later
        assert happened == ["generator ended", "next one"]


async def test_cancelled_call_cancels_the_handler() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Room() as room:
        address = room.replica(methods={"forever": forever})
        room.route(address)
        ticket = room.caller.submit_call("app_Echo", "forever", arguments(), NO_REQUEST)
        await wait_until(lambda: room.servers[address].ongoing == 1)
        ticket.cancel()
        with pytest.raises(RequestCancelledError):
            await ticket
        async with asyncio.timeout(2):
            await ended.wait()
        await wait_until(lambda: room.servers[address].ongoing == 0)


async def test_what_did_not_exist_is_asked_for_again() -> None:
    async def one() -> int:
        return 1

    async with Room() as room:
        asked: list[tuple[str, ...]] = []
        caller = Caller(asyncio.get_running_loop(), "test", asked.append)
        nothing = DeploymentTargets("app_Echo", exists=False)
        there = targets_for(room.replica(methods={"one": one}))
        try:
            first = caller.submit_call("app_Echo", "one", arguments(), NO_REQUEST)
            assert asked == [("app_Echo",)]
            caller.apply_routing(Routing(1, (), (nothing,)))
            with pytest.raises(NoRouteError):
                await first
            # deployed by now, which older news that are under way do not know
            second = caller.submit_call("app_Echo", "one", arguments(), NO_REQUEST)
            third = caller.submit_call("app_Echo", "one", arguments(), NO_REQUEST)
            assert asked == [("app_Echo",), (), ("app_Echo",)]
            caller.apply_routing(Routing(2, (), (nothing,)))
            caller.apply_routing(Routing(2, (), ()))
            assert caller.queued() == {"app_Echo": 2}
            caller.apply_routing(Routing(3, (), (there,)))
            assert [loads(await call) for call in (second, third)] == [1, 1]
        finally:
            caller.close()


async def test_calls_at_a_replica_that_leaves_are_cancelled_too() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Room() as room:
        old, new = room.replica(methods={"forever": forever}), room.replica()
        room.route(old)
        context = RequestContext("r1")
        ticket = room.caller.submit_call("app_Echo", "forever", arguments(), context)
        other = room.caller.submit_call("app_Echo", "forever", arguments(), RequestContext("r1"))
        await wait_until(lambda: room.servers[old].ongoing == 2)
        room.route(new)
        room.caller.cancel_calls_of(context)
        with pytest.raises(RequestCancelledError):
            await ticket
        async with asyncio.timeout(2):
            await ended.wait()
        await wait_until(lambda: room.servers[old].ongoing == 1)
        other.cancel()


async def test_cap_is_never_exceeded_and_everybody_is_served() -> None:
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return number

    async with Room() as room:
        room.route(room.replica(methods={"work": work}, limit=3))
        tickets = [room.caller.submit_call("app_Echo", "work", arguments(n), NO_REQUEST) for n in range(100)]
        assert [loads(await ticket) for ticket in tickets] == list(range(100))
        assert most == 3


async def test_full_line_is_back_pressure() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async with Room() as room:
        address = room.replica(methods={"forever": forever}, limit=1)
        room.route(address, max_queued_requests=1)
        calls = [room.caller.submit_call("app_Echo", "forever", arguments(), NO_REQUEST) for _ in range(3)]
        with pytest.raises(BackPressureError):
            await asyncio.wait_for(calls[2], 2)
        status, headers, _ = split(await room.get("/"))
        assert (status, headers["retry-after"]) == (503, "1")
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("router", [{}, {"name": "round_robin"}, {"name": "consistent_hash", "header": "x-session-id"}])
async def test_calls_from_before_the_bound_of_the_line_was_known_keep_to_it(router: dict[str, Any]) -> None:
    go_on = asyncio.Event()
    async with Room() as room:
        calls = [
            asyncio.ensure_future(
                room.caller.submit_call("app_Echo", "wait", arguments(), NO_REQUEST, session_id=str(number))
            )
            for number in range(9)
        ]
        addresses = [room.replica(methods={"wait": go_on.wait}, limit=1) for _ in range(2)]
        room.route(*addresses, max_queued_requests=3, router=router)
        await wait_until(lambda: sum(call.done() for call in calls) == 4)
        go_on.set()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    refused = [isinstance(answer, BackPressureError) for answer in answers]
    # a rule sends the first of a line where they belong; elsewhere the newest are refused
    assert sum(refused) == 4 if router.get("header") else refused == [False] * 5 + [True] * 4


@pytest.mark.parametrize("end", ["left", "died"])
async def test_what_belonged_to_a_replica_goes_with_it(end: str) -> None:
    async with Room() as room:
        address = room.replica()
        room.route(address)
        assert split(await room.get("/mine"))[2] == b"GET /mine"
        (candidate,) = room.caller.router_of("app_Echo").candidates
        # the peer holds it
        link = weakref.ref(candidate.peer.link)
        del candidate
        gc.disable()
        try:
            # a process that makes few objects collects few
            if end == "died":
                room.servers.pop(address).close()
            else:
                room.route()
            await wait_until(lambda: link() is None)
        finally:
            gc.enable()


async def test_a_replica_that_holds_requests_up_gets_no_further_ones() -> None:
    async def name(which: str) -> str:
        return which

    async with Room() as room:
        first, second = (room.replica(methods={"name": functools.partial(name, which)}) for which in ("1", "2"))
        room.route(first, second)
        room.servers[first].hold(True)
        calls = [room.caller.submit_call("app_Echo", "name", arguments(), NO_REQUEST) for _ in range(20)]
        assert {loads(parts) for parts in await asyncio.wait_for(asyncio.gather(*calls), 5)} == {"2"}
        # its limit may change meanwhile
        room.servers[first].set_limits(7, True)
        room.servers[second].hold(True)
        waiting = room.caller.submit_call("app_Echo", "name", arguments(), NO_REQUEST)
        await wait_until(lambda: room.caller.queued() == {"app_Echo": 1})
        room.servers[first].hold(False)
        assert loads(await asyncio.wait_for(waiting, 5)) == "1"


async def test_unknown_deployment_and_waiting_for_replicas() -> None:
    async with Room() as room:
        room.route()
        waiting = asyncio.create_task(room.get("/late"))
        await wait_until(lambda: room.caller.queued() == {"app_Echo": 1})
        room.route(room.replica())
        assert split(await waiting)[2] == b"GET /late"
        room.route(unavailable="it does not start")
        status, _, body = split(await room.get("/"))
        assert (status, b"it does not start" in body) == (503, True)
        room.route(exists=False)
        with pytest.raises(NoRouteError):
            await room.caller.submit_call("app_Echo", "x", arguments(), NO_REQUEST)


async def test_leaving_replica_hands_over_without_loss() -> None:
    async with Room() as room:
        old, new = room.replica(), room.replica()
        room.route(old)
        await room.get("/")
        room.servers[old].drain()
        waiting = asyncio.create_task(room.get("/moved"))
        await wait_until(lambda: room.caller.queued() == {"app_Echo": 1})
        room.route(new)
        assert split(await waiting)[2] == b"GET /moved"


async def test_client_disconnect_cancels_the_handler() -> None:
    cancelled = asyncio.Event()

    async def slow(exchange: HttpExchange) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Room() as room:
        address = room.replica(slow)
        room.route(address)
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_until(lambda: room.servers[address].ongoing == 1)
        writer.close()
        async with asyncio.timeout(2):
            await cancelled.wait()
        await wait_until(lambda: room.servers[address].ongoing == 0)


@pytest.mark.parametrize("way", ["handle call", "client"])
async def test_calls_of_a_cancelled_request_end_at_once_whatever_its_handler_does(way: str) -> None:
    ended, go_on = asyncio.Event(), asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def stubborn(*_: Any) -> None:
        inner = room.caller.submit_call("app_Inner", "forever", arguments(), current_request.get())
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                pass
        with pytest.raises(RequestCancelledError):
            await inner

    async with Room() as room:
        front = room.replica(stubborn, methods={"stubborn": stubborn})
        back = room.replica(methods={"forever": forever})
        targets = targets_for(front), targets_for(back, deployment="app_Inner")
        room.forwarder.apply_routing(routing_for(*targets))
        if way == "client":
            _, writer = await asyncio.open_connection("127.0.0.1", room.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        else:
            outer = room.caller.submit_call("app_Echo", "stubborn", arguments(), NO_REQUEST)
        await wait_until(lambda: room.servers[back].ongoing == 1)
        if way == "client":
            writer.close()
        else:
            outer.cancel()
        async with asyncio.timeout(2):
            await ended.wait()
        assert room.servers[front].ongoing == 1
        go_on.set()
        await wait_until(lambda: room.servers[front].ongoing == 0)


@pytest.mark.parametrize("way", ["handle call", "whole answer", "stream"])
async def test_the_time_limit_ends_with_the_answer(way: str) -> None:
    answered, called = asyncio.Event(), asyncio.Event()
    left: list[float | None] = []

    async def in_the_background() -> None:
        request = current_request.get()
        left.append(request.deadline)
        await answered.wait()
        left.append(request.deadline)
        called.set()

    async def leaves_work(exchange: HttpExchange | None = None) -> None:
        task = asyncio.create_task(in_the_background())
        await asyncio.sleep(0)
        if exchange is not None and way == "stream":
            await exchange.send({"type": "http.response.start", "status": 200})
            await exchange.send({"type": "http.response.body", "body": b"x", "more_body": True})
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
        elif exchange is not None:
            exchange.finish(200, (), b"x")
        if exchange is not None:
            # as background tasks of a framework do: the handler has not ended
            answered.set()
            await task

    async with Room() as room:
        room.route(room.replica(leaves_work, methods={"leaves_work": leaves_work}))
        if way == "handle call":
            deadline = asyncio.get_running_loop().time() + 30
            await room.caller.submit_call("app_Echo", "leaves_work", arguments(), NO_REQUEST, deadline=deadline)
            answered.set()
        else:
            assert split(await room.get("/", "x-request-timeout-seconds: 30"))[0] == 200
        async with asyncio.timeout(2):
            await called.wait()
    assert left[0] is not None
    assert left[1] is None


async def test_time_limit_is_408_and_names_the_stage() -> None:
    async def slow(exchange: HttpExchange) -> None:
        deadline = current_request.get().deadline
        assert deadline is not None
        await asyncio.Event().wait()

    async with Room() as room:
        room.route(room.replica(slow))
        status, _, body = split(await room.get("/", "x-request-timeout-seconds: 0.05"))
        assert (status, b"in the handler" in body) == (408, True)
        room.route(request_timeout_s=0.05)
        status, _, body = split(await room.get("/"))
        assert (status, b"waiting for a replica" in body) == (408, True)
        data = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab"
        status, _, body = split(await room.raw(data))
        assert (status, b"reading the body" in body) == (408, True)


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered in time", "not answered"])
async def test_a_call_that_outlives_the_answer_outlives_the_time_limit(is_answered: bool) -> None:
    go = asyncio.Event()

    async def slow() -> str:
        await go.wait()
        return "done"

    async with Room() as room:
        room.route(room.replica(methods={"slow": slow}))
        loop = asyncio.get_running_loop()
        request = RequestContext("r1", deadline=loop.time() + 0.05)
        call = room.caller.submit_call("app_Echo", "slow", arguments(), request, deadline=request.deadline)
        passed = asyncio.Event()
        loop.call_at(loop.time() + 0.06, passed.set)
        if is_answered:
            request.deadline = None
        await passed.wait()
        go.set()
        if is_answered:
            assert loads(await asyncio.wait_for(call, 5)) == "done"
        else:
            with pytest.raises(TimeLimitError, match="time limit of the request passed"):
                await call


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
async def test_an_odd_error_reaches_its_caller(kind: type[Exception], place: str) -> None:
    async def fail(*_: Any) -> None:
        raise_odd(kind, place)

    async with Room() as room:
        room.route(room.replica(fail, methods={"fail": fail}))
        with pytest.raises(RemoteFailure):
            await asyncio.wait_for(room.caller.submit_call("app_Echo", "fail", arguments(), NO_REQUEST), 5)
        assert split(await room.get("/"))[0] == 500


@pytest.mark.parametrize("exit_error", [GeneratorExit, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_whoever_leaves_the_interpreter_fails_his_request_alone(exit_error: type[BaseException]) -> None:
    async def leave(*_: Any) -> None:
        raise exit_error

    async with Room() as room:
        room.route(room.replica(leave, methods={"leave": leave}))
        with pytest.raises((RemoteFailure, RequestCancelledError)):
            await asyncio.wait_for(room.caller.submit_call("app_Echo", "leave", arguments(), NO_REQUEST), 5)
        parts = dumps(((LeavesWhenUnpickled(),), {}))
        with pytest.raises(RemoteFailure):
            await asyncio.wait_for(room.caller.submit_call("app_Echo", "leave", parts, NO_REQUEST), 5)
        assert split(await room.get("/"))[0] == 500


async def test_streamed_response_is_chunked_and_bounded() -> None:
    sent = 0

    async def stream(exchange: HttpExchange) -> None:
        nonlocal sent
        if exchange.scope["path"] == "/other":
            exchange.finish(200, [], b"")
            return
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(300):
            await exchange.send({"type": "http.response.body", "body": b"z" * 65536, "more_body": True})
            sent += 1
        await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async with Room() as room:
        room.route(room.replica(stream))
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1000)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        before = -1
        while before != sent:
            before = sent
            for _ in range(20):
                # the replica goes on with others meanwhile
                assert split(await room.get("/other"))[0] == 200
        assert sent < 300, "a slow reader holds the handler up"
        body = await reader.read()
        assert body.count(b"10000\r\n") == 300
        assert body.endswith(b"0\r\n\r\n")
        writer.close()


async def test_error_before_and_after_the_response_began() -> None:
    async def early(exchange: HttpExchange) -> None:
        raise ValueError("too early")

    async def late(exchange: HttpExchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise ValueError("too late")

    async with Room() as room:
        room.route(room.replica(early))
        status, _, body = split(await room.get("/"))
        assert status == 500
        assert re.fullmatch(rb"Internal Server Error \(request id [0-9a-f-]{36}\)", body)
        room.route(room.replica(late))
        answer = await room.get("/")
        assert answer.endswith(b"3\r\nabc\r\n"), "closed early, without the last chunk"


async def test_a_header_with_a_line_break_is_an_error() -> None:
    async def split_response(exchange: HttpExchange) -> None:
        exchange.finish(200, [(b"x", b"a\r\nset-cookie: b")], b"")

    async with Room() as room:
        room.route(room.replica(split_response))
        assert split(await room.get("/"))[0] == 500


_REPLICA = """
import asyncio, sys, os
from tests.fakes import FakeUser, a_server

async def http(exchange):
    open(sys.argv[2], "a").write(exchange.scope["path"] + "\\n")
    if exchange.scope["path"].startswith("/die"):
        await asyncio.sleep(0.02)
        os._exit(1)
    if exchange.scope["path"].startswith("/block"):
        __import__("threading").Event().wait()
    exchange.finish(200, [], b"from " + sys.argv[3].encode())

async def main():
    server = a_server(sys.argv[1], FakeUser(http))
    server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Replicas:
    """Replicas in processes of their own."""

    def __init__(self, tmp_path: Any) -> None:
        self.log = tmp_path / "log"
        self.log.touch()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, name: str) -> str:
        address = new_address()
        process = subprocess.Popen(
            [sys.executable, "-c", _REPLICA, address, str(self.log), name], stdout=subprocess.PIPE, text=True
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return address

    def kill(self, index: int) -> None:
        self.signal(index, signal.SIGKILL)

    def signal(self, index: int, number: signal.Signals) -> None:
        self._processes[index].send_signal(number)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def seen(self, path: str) -> int:
        return self.log.read_text().split("\n").count(path)


@pytest.fixture
def replicas(tmp_path: Any) -> Any:
    found = Replicas(tmp_path)
    yield found
    found.close()


@pytest.mark.slow
async def test_accepted_get_is_retried_three_times_then_502(replicas: Replicas) -> None:
    async with Room() as room:
        room.route(*(replicas.start(str(number)) for number in range(5)))
        status, _, body = split(await room.get("/die"))
        assert (status, b"died" in body) == (502, True)
        assert replicas.seen("/die") == 4, "the first try and three retries"
        assert split(await room.get("/"))[0] == 200


@pytest.mark.slow
async def test_accepted_post_is_not_repeated(replicas: Replicas) -> None:
    async with Room() as room:
        room.route(replicas.start("a"), replicas.start("b"))
        assert split(await room.get("/die", method="POST"))[0] == 502
        assert replicas.seen("/die") == 1


@pytest.mark.slow
async def test_post_to_a_replica_that_blocks_and_is_killed_is_not_repeated(replicas: Replicas) -> None:
    async with Room() as room:
        # before anybody waits: it takes this loop's time
        first, other = replicas.start("a"), replicas.start("b")
        room.route(first)
        waiting = asyncio.create_task(room.get("/block", method="POST"))
        await wait_until(lambda: replicas.seen("/block") == 1)
        behind = asyncio.create_task(room.get("/behind", method="POST"))
        await wait_until(lambda: room.listener.ongoing == 2)
        replicas.kill(0)
        room.route(other)
        assert split(await waiting)[0] == 502
        assert split(await behind)[2] == b"from b", "it had never begun"


async def test_a_busy_replica_that_left_is_let_go_once_its_last_request_is_taken_back(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "_TURN_S", 0.02)
    async with Room() as room:
        room.route(replicas.start("a"))
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_until(lambda: replicas.seen("/block") == 1)
        room.route(replicas.start("b"))
        assert repr(room.caller.watch) == "LinkWatch(2 links)"
        writer.close()
        await wait_until(lambda: repr(room.caller.watch) == "LinkWatch(1 links)")
        assert split(await room.get("/"))[2] == b"from b"


@pytest.mark.slow
async def test_kill_of_an_idle_replica_loses_nothing(replicas: Replicas) -> None:
    async with Room() as room:
        room.route(replicas.start("a"), replicas.start("b"))
        for number in range(60):
            if number == 20:
                replicas.kill(0)
            assert split(await room.get(f"/{number}", method="POST"))[0] == 200
