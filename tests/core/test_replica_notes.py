"""How a replica notes its requests."""

import asyncio
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from servd.calls.request_context import RequestContext, current_request
from servd.calls.traced import begun
from servd.exceptions import BackPressureError, RequestCancelledError
from servd.observability.access_log import AccessLog
from servd.observability.journal import Journal
from servd.observability.log_file import LogFile
from servd.replica.notes import noter
from servd.wire.trace_context import TraceContext

TRACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)


def one(name: str = "r", route: str = "/a", pattern: str = "") -> RequestContext:
    return RequestContext(name, route, "app", pattern=pattern)


async def test_requests_are_counted_and_worded_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servd.observability.spans.has_met_traces", False)
    file = LogFile(tmp_path / "x.log")
    journal = Journal(asyncio.get_running_loop(), AccessLog(file, "replica", "a#x", ("notes.py", 7)))
    note = noter(journal)
    late = one("late")
    late.let_find_pattern(lambda *asked: "".join(asked[::2]), "GET", "/root/x", "/root")
    traced, _ = begun(one("traced"), TRACE, "m", {})
    for context, succeeded in (
        (one("r0"), True),
        (one("r1"), False),
        (one("r2", "/b"), True),
        (late, True),
        (traced, True),
    ):
        token = current_request.set(context)
        note("m", succeeded, journal.now())
        current_request.reset(token)
    assert {key: found.count for key, found in journal.series().items()} == {
        (("/a", "app", "", ""), "m", "OK"): 2,
        (("/a", "app", "", ""), "m", "ERROR"): 1,
        (("/b", "app", "", ""), "m", "OK"): 1,
        (("/a", "app", "", "/a/x"), "m", "OK"): 1,
    }
    journal.settle()
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert [line.split(" a#x ")[1].rpartition(" ")[0] for line in lines] == [
        "r0 /a app notes.py:7 - m OK",
        "r1 /a app notes.py:7 - m ERROR",
        "r2 /b app notes.py:7 - m OK",
        "late /a app notes.py:7 - m OK",
        f"traced trace_id={TRACE.trace_id} span_id={TRACE.span_id} /a app notes.py:7 - m OK",
    ]


@pytest.mark.parametrize(
    ("error", "cancellations", "left_s", "status"),
    [
        (ValueError("a"), 0, None, "ERROR"),
        (ValueError("a"), 1, None, "ERROR"),
        # by itself
        (asyncio.CancelledError(), 0, None, "ERROR"),
        (RequestCancelledError("of its own"), 0, None, "ERROR"),
        (asyncio.CancelledError(), 1, None, "CANCELLED"),
        (GeneratorExit(), 1, 30.0, "CANCELLED"),
        (ExceptionGroup("g", [RequestCancelledError("with it")]), 1, None, "CANCELLED"),
        (ClientDisconnect(), 1, None, "CANCELLED"),
        # its time limit has passed, by the caller's clock at least
        (asyncio.CancelledError(), 1, -1.0, "ERROR"),
        (asyncio.CancelledError(), 1, 0.01, "ERROR"),
        (WebSocketDisconnect(1006), 0, None, "OK"),
        (BackPressureError("a", 1, 1), 0, None, "ERROR"),
    ],
)
async def test_what_a_request_that_nobody_waits_for_counts_as(
    error: BaseException, cancellations: int, left_s: float | None, status: str
) -> None:
    journal = Journal(asyncio.get_running_loop(), counts=True)
    note, context = noter(journal), one()
    context.cancellations = cancellations
    context.deadline = None if left_s is None else journal.now() + left_s
    token = current_request.set(context)
    try:
        raise error
    except BaseException:
        note("m", False, journal.now())
    current_request.reset(token)
    assert [key[2] for key in journal.series()] == [status]


async def test_routes_that_callers_choose_fill_no_memory() -> None:
    journal = Journal(asyncio.get_running_loop(), counts=True)
    note = noter(journal)
    for number in range(5000):
        token = current_request.set(one(route=f"/{number}"))
        note("m", True, journal.now())
        current_request.reset(token)
    assert sum(found.count for found in journal.series().values()) == 5000
