"""The request that running code serves. Standard library only: every replica and every driver loads this."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servd.observability.spans import Span
    from servd.wire.trace_context import TraceContext

MAX_DEPTH = 64
"""Handle calls nested deeper than this are refused (python-api.md section 8.3)."""

_ENDED: list[Callable[[], None]] = []
_TIMERS_S = 0.001
"""Timers of uvloop count whole milliseconds, and come up to half of one early."""


class RequestContext:
    """The request that the current task serves; travels with every handle call made on its behalf.

    deadline: monotonic seconds of this process, None = no limit. depth: handle calls between the entry
    and here. ancestors: replica ids that hold a slot for this request, outermost first. cancellations: how often it was
    cancelled. known_pattern: `pattern`, or how to find it. trace: where in which trace it is, None for most; span: what is
    recorded of it, if it is (`calls/traced.py`).
    """

    # of the class: a `TracedContext` has its own
    trace: "TraceContext | None" = None
    span: "Span | None" = None

    __slots__ = (
        "_when_over",
        "ancestors",
        "app_name",
        "cancellations",
        "deadline",
        "depth",
        "known_pattern",
        "multiplexed_model_id",
        "request_id",
        "route",
    )

    def __init__(
        self,
        request_id: str = "",
        route: str = "",
        app_name: str = "",
        multiplexed_model_id: str = "",
        deadline: float | None = None,
        depth: int = 0,
        ancestors: tuple[str, ...] = (),
        pattern: str = "",
    ) -> None:
        self.request_id = request_id
        self.route = route
        self.app_name = app_name
        self.multiplexed_model_id = multiplexed_model_id
        self.deadline = deadline
        self.depth = depth
        self.ancestors = ancestors
        self.cancellations = 0
        self._when_over: list[Callable[[], None]] | None = None
        self.known_pattern: str | tuple[Callable[[str, str, str], str], str, str, str] = pattern

    @property
    def pattern(self) -> str:
        """The route of the ASGI application at the entry that answers, its prefix before it; "" where none is known."""
        known = self.known_pattern
        if type(known) is tuple:
            # most requests end before somebody asks
            find, method, path, root_path = known
            known = self.known_pattern = find(self.route, method, path[len(root_path) :])
        return known  # type: ignore[return-value]

    def let_find_pattern(self, find: Callable[[str, str, str], str], method: str, path: str, root_path: str) -> None:
        """Let `pattern` be what `find` gives for the route, the method and the path without the root path, once asked for."""
        self.known_pattern = (find, method, path, root_path)

    def is_late(self, now: float) -> bool:
        """Whether its time limit has passed, or a timer may have said so. now: monotonic seconds."""
        return self.deadline is not None and now >= self.deadline - _TIMERS_S

    @property
    def has_ended(self) -> bool:
        """Whether it is over; tasks that it left running still have it for their request."""
        return self._when_over is _ENDED

    def when_over(self, told: Callable[[], None]) -> None:
        """Call `told` when the request has ended; to be asked of one that goes on."""
        if self._when_over is None:
            self._when_over = []
        self._when_over.append(told)

    def end(self) -> None:
        """The request has ended: what it left running holds no slot and has no time limit."""
        self.ancestors = ()
        self.deadline = None
        told, self._when_over = self._when_over, _ENDED
        if told is not None:
            for one in told:
                one()

    def __repr__(self) -> str:
        return (
            f"RequestContext(request_id={self.request_id!r}, route={self.route!r}, "
            f"app_name={self.app_name!r}, multiplexed_model_id={self.multiplexed_model_id!r}, "
            f"deadline={self.deadline}, depth={self.depth}, ancestors={self.ancestors})"
        )


NO_REQUEST = RequestContext()
"""Stands for "no request": never changed."""

current_request: ContextVar[RequestContext] = ContextVar("servd_request", default=NO_REQUEST)
"""Set by the replica for each request; `NO_REQUEST` elsewhere."""


def get_multiplexed_model_id() -> str:
    """Model id of the current request, "" when there is none."""
    return current_request.get().multiplexed_model_id
