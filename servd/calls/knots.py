"""What waits in a line and could never run: refused, so that the rest can."""

from operator import attrgetter

from servd.calls.circles import knot
from servd.calls.outgoing import CallTicket, Outgoing, circle_of
from servd.calls.request_router import RequestRouter

_number = attrgetter("number")


def refuse_circles(router: RequestRouter[Outgoing]) -> None:
    """Refuse what waits for slots that are held on its own behalf."""
    for call in list(router.line):
        refused = circle_of(call)
        if refused is not None:
            router.line.remove(call)
            call.on_failure(refused)
    untie(router)


def untie(router: RequestRouter[Outgoing]) -> None:
    """Refuse the newest of the calls that wait for each other, until the others can run."""
    while True:
        waits = [call for call in router.line if isinstance(call, CallTicket) and call.context.ancestors]
        if not waits:
            return
        about = ((call.context.request_id, call.context.ancestors) for call in waits)
        refused = None if router.targets.may_grow else knot(router.deployment, router.limits(), about)
        if refused is None:
            return
        newest = max((call for call in waits if router.limits().keys() & call.context.ancestors), key=_number)
        router.line.remove(newest)
        newest.on_failure(refused)
