"""How a replica notes its requests."""

import sys
from collections.abc import Callable

from servd.calls.failures import says_unwanted
from servd.calls.request_context import RequestContext, current_request
from servd.observability.head_traces import traced_id
from servd.observability.journal import NOWHERE, Journal

_LATE_S = 0.05
"""The caller's clock ends a request, and the time limit that the replica knows of may pass so much later."""


def noter(journal: Journal) -> Callable[[str, bool, float], None]:
    """What to call at the end of each request, in its context, with method, success and begin; of one that has not succeeded
    while its exception is on its way."""
    # local names: it is called for every request
    extend, get, now = journal.noted.extend, current_request.get, journal.now
    # of the request before: most are like it. To keep each one's context would fill the processor's cache
    labels = NOWHERE

    def note(method: str, succeeded: bool, began: float) -> None:
        nonlocal labels
        if journal.is_on:
            context = get()
            route, app, _, pattern = labels
            if context.route != route or context.known_pattern != pattern or context.app_name != app:
                labels = (context.route, context.app_name, "", context.pattern)
            rid, trace = context.request_id, context.trace
            known = rid.encode() if trace is None else traced_id(rid, trace)
            status = "OK" if succeeded else _status_of(sys.exc_info()[1], context, now())
            extend((labels, method, status, began, now(), known, b"", 0, "", ""))

    return note


def _status_of(error: BaseException | None, request: RequestContext, now: float) -> str:
    """What is said of a request that ends with an exception: that nobody waits for it any more is no error of its code."""
    if error is None or not says_unwanted(error, request):
        return "ERROR"
    if not request.cancellations:
        # the way in which a WebSocket ends
        return "OK"
    is_late = request.deadline is not None and now >= request.deadline - _LATE_S
    return "ERROR" if is_late else "CANCELLED"
