"""How a replica notes its requests: as little as possible while they run, the rest when the journal settles."""

from collections.abc import Callable
from typing import Any

from servd.calls.request_context import RequestContext, current_request
from servd.observability.head_traces import traced_id
from servd.observability.journal import Journal, Note

_Noted = tuple[RequestContext, str, bool, float, float]


def noter(journal: Journal) -> Callable[[str, bool, float], None]:
    """What to call at the end of each request, in its context, with method, success and begin."""
    # local names: it is called for every request
    append, get, now = journal.noted.append, current_request.get, journal.now

    def note(method: str, succeeded: bool, began: float) -> None:
        if journal.is_on:
            append((get(), method, succeeded, began, now()))

    return note


def read_notes(batch: list[Any]) -> list[Note]:
    """The journal's notes behind those of `noter`."""
    found: list[_Noted] = batch
    return [
        (
            (context.route, context.app_name, "", context.pattern),
            method,
            "OK" if succeeded else "ERROR",
            began,
            ended,
            context.request_id.encode() if context.trace is None else traced_id(context.request_id, context.trace),
            b"",
            0,
            "",
            "",
        )
        for context, method, succeeded, began, ended in found
    ]
