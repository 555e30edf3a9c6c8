"""Which errors are told, and what is told of them."""

import contextvars
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from servd.calls import failures
from servd.calls.pickling import dump_exception, load_exception
from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.calls.traced import TracedContext
from servd.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError, UserCodeError
from servd.observability.failure import LINE_CHARACTERS, TRACEBACK_CHARACTERS, bounded, failure_of
from servd.wire.trace_context import TraceContext
from tests.recorded_spans import RecordedSpan

Told = list[tuple[BaseException, str, list[str]]]


@pytest.fixture
def told() -> Iterator[Told]:
    found: Told = []

    def hear(error: BaseException, method: str, requests: Sequence[RequestContext], is_logged: bool) -> None:
        method += " logged" if is_logged else ""
        found.append((error, method, [one.request_id for one in requests]))

    before = failures._listeners[:]
    failures.listen(hear)
    yield found
    failures._listeners[:] = before


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is None:
            raise error
        raise error from cause
    except BaseException as caught:
        return caught


def from_afar(error: BaseException) -> Exception:
    """As it comes out of a handle call."""
    return load_exception(dump_exception(raised(error)))


def a_recorded_request() -> tuple[RequestContext, RecordedSpan]:
    context = TracedContext("r")
    context.trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)
    context.span = span = RecordedSpan(context.trace, {})
    return context, span


class Hidden(ExceptionGroup[Exception]):
    """A group that says that it holds something else."""

    @property
    def exceptions(self) -> tuple[Exception, ...]:
        return (WebSocketDisconnect(1006),)


class Unpicklable(Exception):
    def __reduce__(self) -> str:
        raise pickle.PicklingError("no")


@pytest.mark.parametrize(
    ("made", "is_told"),
    [
        (lambda: raised(ValueError("a")), True),
        (lambda: from_afar(ValueError("a")), False),
        (lambda: raised(from_afar(ValueError("a"))), False),
        (lambda: raised(from_afar(Unpicklable("a"))), False),
        (lambda: raised(KeyError("b"), from_afar(ValueError("a"))), True),
        # calls of a group of tasks
        (lambda: raised(ExceptionGroup("g", [from_afar(ValueError("a")), from_afar(Unpicklable("a"))])), False),
        (lambda: raised(ExceptionGroup("g", [ExceptionGroup("h", [from_afar(ValueError("a"))])])), False),
        (lambda: raised(ExceptionGroup("g", [from_afar(ValueError("a")), KeyError("b")])), True),
        (lambda: raised(ExceptionGroup("g", [from_afar(ValueError("a")), BackPressureError("a_b", 1, 1)])), False),
        (lambda: from_afar(ExceptionGroup("g", [ValueError("a")])), False),
        (
            lambda: raised(
                ExceptionGroup(
                    "g",
                    [KeyError("b")],
                ),
                from_afar(ValueError("a")),
            ),
            True,
        ),
        (lambda: raised(KeyError("b"), raised(from_afar(Unpicklable("a")))), True),
        (lambda: raised(BackPressureError("a_b", 1, 1)), False),
        (lambda: raised(DeploymentUnavailableError("a_b", "ill")), False),
        (lambda: raised(UserCodeError("the handler raised SystemExit"), SystemExit(1)), True),
        # that the client has left, as the frameworks say it
        (lambda: raised(failures.ClientGoneError("gone")), False),
        (lambda: raised(WebSocketDisconnect(1006)), False),
        (lambda: raised(ClientDisconnect()), False),
        (lambda: raised(ClientDisconnect(), raised(failures.ClientGoneError("gone"))), False),
        (lambda: raised(ExceptionGroup("g", [WebSocketDisconnect(1006), failures.ClientGoneError("gone")])), False),
        (lambda: raised(ExceptionGroup("g", [ExceptionGroup("h", [WebSocketDisconnect(1001)])])), False),
        (lambda: raised(ExceptionGroup("g", [WebSocketDisconnect(1006), ValueError("a")])), True),
        (lambda: raised(BaseExceptionGroup("g", [WebSocketDisconnect(1006), KeyboardInterrupt()])), True),
        (lambda: raised(KeyError("b"), WebSocketDisconnect(1006)), True),
        (lambda: raised(failures.TimeLimitError("the time limit of the request passed")), False),
        (lambda: raised(ExceptionGroup("g", [failures.TimeLimitError("passed")])), False),
        (lambda: raised(TimeoutError("of its own")), True),
        # a call that the application has taken back itself
        (lambda: raised(RequestCancelledError("the call was cancelled")), True),
        (lambda: raised(ConnectionResetError("of a connection of its own")), True),
        (lambda: raised(Hidden("g", [ValueError("a")])), True),
    ],
)
def test_what_is_told(told: Told, made: Callable[[], BaseException], is_told: bool) -> None:
    error = made()
    assert failures.tell(error, "m", RequestContext("r"))
    assert told == ([(error, "m", ["r"])] if is_told else [])


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (RequestCancelledError("the call was cancelled"), False),
        (ExceptionGroup("g", [RequestCancelledError("a"), ExceptionGroup("h", [RequestCancelledError("b")])]), False),
        (ExceptionGroup("g", [RequestCancelledError("a"), ValueError("b")]), True),
        (ValueError("a"), True),
    ],
)
def test_what_is_told_of_a_request_that_was_taken_back(told: Told, error: Exception, is_told: bool) -> None:
    context, span = a_recorded_request()
    raised(error)
    context.cancellations = 1
    failures.tell(error, "m", context)
    assert (bool(told), "failed" in span.told) == (is_told, is_told)


def test_of_a_batch_it_counts_that_one_is_still_waited_for(told: Told) -> None:
    error = raised(RequestCancelledError("the call was cancelled"))
    taken_back = RequestContext("r2")
    taken_back.cancellations = 1
    failures.tell(error, "m", taken_back, RequestContext("r1"))
    assert [ids for _, _, ids in told] == [["r2", "r1"]]


def test_a_span_does_not_fail_since_its_client_has_left(told: Told) -> None:
    context, span = a_recorded_request()
    failures.tell(raised(WebSocketDisconnect(1006)), "m", context)
    assert (told, span.told) == ([], {})
    failures.tell(raised(BackPressureError("a_b", 1, 1)), "m", context)
    assert (told, "failed" in span.told) == ([], True)


def test_what_ended_a_task_is_not_told_again_as_the_error_of_its_request(told: Told) -> None:
    error = raised(SystemExit(1))
    failures.tell(error, "task")
    failures.tell(raised(UserCodeError("the handler raised SystemExit"), error), "m")
    assert [method for _, method, _ in told] == ["task"]


def test_requests_of_a_batch_do_not_tell_its_error_again(told: Told) -> None:
    error, requests = raised(ValueError("a")), [RequestContext("r1"), RequestContext("r2")]
    failures.tell_of_batch(error, "batch", [*requests, NO_REQUEST])
    for request in requests:
        failures.tell(error, "m", request)
        failures.tell(raised(ExceptionGroup("g", [error])), "m", request)
    failures.tell(raised(ValueError("b")), "m", requests[0])
    assert [(method, ids) for _, method, ids in told] == [("batch", ["r1", "r2", ""]), ("m", ["r1"])]
    for request in requests:
        request.end()
    assert not failures._told


def test_what_was_logged_of_a_request_that_raised_nothing(told: Told) -> None:
    request, other = RequestContext("r1"), RequestContext("r2")
    for one, error in ((request, ValueError("a")), (other, ValueError("b")), (request, ValueError("c"))):
        before = current_request.set(one)
        # a framework may run handlers in threads
        thread = threading.Thread(target=contextvars.copy_context().run, args=(failures.note_logged, raised(error)))
        thread.start()
        thread.join()
        current_request.reset(before)
    failures.note_logged(ValueError("of no request"))
    failures.tell_logged("m")
    before = current_request.set(request)
    failures.tell_logged("m")
    failures.tell_logged("m")
    current_request.reset(before)
    assert [(str(error), method, ids) for error, method, ids in told] == [("c", "m logged", ["r1"])]
    request.end()
    other.end()
    assert not failures._logged


@pytest.mark.parametrize("error", [BackPressureError("a_b", 1, 1), from_afar(ValueError("a"))])
def test_what_was_logged_may_be_told_already(told: Told, error: Exception) -> None:
    request = RequestContext("r1")
    before = current_request.set(request)
    failures.note_logged(raised(error))
    failures.tell_logged("m")
    current_request.reset(before)
    request.end()
    assert not told


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    assert not failures.tell(ValueError("a"), "m")
    failures.tell_or_log(raised(WebSocketDisconnect(1006)), "m")
    assert caplog.messages == []
    failures.tell_or_log(raised(ValueError("a")), "m")
    assert caplog.messages == ["user_code_failed method=m"]


def test_a_group_is_one_type_in_one_place() -> None:
    def fail(kind: type[Exception], text: str) -> BaseException:
        return raised(kind(text))

    def group(error: BaseException, deployment: str = "D") -> str:
        return failure_of(error, app="a", deployment=deployment, method="m").id

    first = group(fail(ValueError, "a"))
    assert first == group(fail(ValueError, "b"))
    assert len({first, group(fail(KeyError, "a")), group(fail(ValueError, "a"), "E"), group(ValueError("a"))}) == 4


def test_a_group_of_tasks_that_other_code_made_is_where_its_first_error_was_raised() -> None:
    def place(error: BaseException) -> str:
        return failure_of(error, app="a", deployment="D", method="m").place

    one = raised(ValueError("a"))
    group = BaseExceptionGroup("", [KeyError("without a frame"), BaseExceptionGroup("", [one, KeyError("b")])])
    assert place(group) == place(one) != "m"
    assert place(raised(UserCodeError("the handler raised"), group)) == place(one)
    assert place(ExceptionGroup("", [KeyError("a")])) == "m"


def test_what_is_told_of_an_exit() -> None:
    error = raised(UserCodeError("the handler raised SystemExit"), raised(SystemExit("bye")))
    failure = failure_of(error, app="a", deployment="D", method="m", at=1.0, request_ids=("r",))
    assert (failure.type, failure.text, failure.request_ids) == ("SystemExit", "SystemExit: bye", ("r",))
    assert failure.place.endswith(" in raised")


def test_texts_are_bounded_and_harmless() -> None:
    failure = failure_of(
        raised(ValueError("\x1b[31m\x9b" + "x" * 1_000_000 + "\r\nlast")), app="a", deployment="D", method="m"
    )
    assert len(failure.text) <= LINE_CHARACTERS + 20
    assert failure.traceback.startswith("Traceback")
    assert failure.traceback.endswith("last")
    assert TRACEBACK_CHARACTERS <= len(failure.traceback) < TRACEBACK_CHARACTERS + 100
    for text in (failure.text, failure.traceback):
        assert not {"\x1b", "\x9b", "\r"} & set(text)
    assert bounded("a\tb\nc\x00") == "a\tb\nc\\x00"


def test_without_a_frame_of_the_users_the_method_is_the_place() -> None:
    assert failure_of(ValueError("a"), app="a", deployment="D", method="m").place == "m"


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "'x" * 5000, "=RayServe" * 1000, "http://" * 3000, "DeploymentHandle" * 600]
)
def test_no_text_takes_long(text: str) -> None:
    error = raised(TypeError(text))
    # a replica's loop stands still meanwhile
    taken = min(timed(lambda: failure_of(error, app="a", deployment="D", method="m")) for _ in range(3))
    assert taken < 0.05


def timed(call: Callable[[], object]) -> float:
    """Seconds of CPU."""
    began = time.thread_time()
    call()
    return time.thread_time() - began
