"""How a replica notes its requests."""

from collections.abc import Callable

from servd.calls.request_context import current_request
from servd.observability.head_traces import traced_id
from servd.observability.journal import NOWHERE, Journal


def noter(journal: Journal) -> Callable[[str, bool, float], None]:
    """What to call at the end of each request, in its context, with method, success and begin."""
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
            extend((labels, method, "OK" if succeeded else "ERROR", began, now(), known, b"", 0, "", ""))

    return note
