"""One error of user code as it is told of: its kind and place, and texts that are fit for a log and a terminal."""

import hashlib

from servd.exceptions import UserCodeError
from servd.ground.names import on_one_line, without_controls
from servd.ground.quick_dataclass import dataclass
from servd.observability.described import full_name_of, slot, summary_of
from servd.observability.tracebacks import user_traceback, users_place

TRACEBACK_CHARACTERS = 16 * 1024
"""Of longer ones, the begin and the end."""
LINE_CHARACTERS = 500
_ID_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Failure:
    """One error, once.

    id: the same for all of one type and place in a deployment. text: its summary, one line. method: of the deployment, or what
    names whatever raised it. at: seconds since the epoch. request_ids: of those that failed with it. trace_ids: of those of them
    that are part of a trace, each behind its request's.
    """

    id: str
    type: str
    place: str
    text: str
    traceback: str
    method: str
    route: str
    at: float
    request_ids: tuple[str, ...]
    trace_ids: tuple[tuple[str, str], ...] = ()


def failure_of(
    error: BaseException,
    *,
    app: str,
    deployment: str,
    method: str,
    route: str = "",
    at: float = 0.0,
    request_ids: tuple[str, ...] = (),
    trace_ids: tuple[tuple[str, str], ...] = (),
) -> Failure:
    """What to tell of an exception; texts are bounded and hold no control characters. Never raises."""
    cause = slot(error, "__cause__")
    # `sys.exit()` comes as an error of its request: what was raised is the cause
    raised = cause if type(error) is UserCodeError and cause is not None else error
    kind = _line(full_name_of(type(raised)))
    place = _line(users_place(raised) or users_place(error) or method)
    named = "\0".join((app, deployment, kind, place))
    return Failure(
        id=hashlib.sha256(named.encode(errors="replace")).hexdigest()[:_ID_DIGITS],
        type=kind,
        place=place,
        text=_line(summary_of(raised)),
        traceback=bounded(user_traceback(error)),
        method=_line(method),
        route=route,
        at=at,
        request_ids=request_ids,
        trace_ids=trace_ids,
    )


def bounded(text: str, limit: int = TRACEBACK_CHARACTERS) -> str:
    """The text without control characters, ends of lines and tabs excepted; of one longer than `limit` the begin and the end."""
    if len(text) > limit:
        begin, left_out = limit // 4, len(text) - limit
        text = f"{text[:begin]}\n... {left_out} characters left out ...\n{text[begin + left_out :]}"
    return without_controls(text)


def _line(text: str) -> str:
    first, _, more = text.partition("\n")
    short = first if len(first) <= LINE_CHARACTERS and not more else f"{first[: LINE_CHARACTERS - 3]}..."
    return on_one_line(short)
