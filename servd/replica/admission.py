"""Which requests a replica takes: an exact cap over all callers, and a line of tickets for those that were
refused.

How it works: a request is admitted while running and offered slots are fewer than the limit. A refused caller
leaves one ticket. Every slot that becomes free is held for the caller with the oldest ticket and offered to
it; the caller claims it with its oldest request or declines. A caller that still has requests waiting goes to
the end of the line, so no caller polls and none starves.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

CallerT = TypeVar("CallerT", bound=Hashable)


class Admission(Generic[CallerT]):
    """The exact cap of one replica.

    Args:
        limit: requests that may run at once, >= 1.

    Attributes:
        running: admitted requests. held: slots that are offered. tickets: callers that wait, with how many requests.
    """

    __slots__ = ("_offered", "held", "is_leaving", "limit", "running", "tickets")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.held = 0
        self.is_leaving = False
        self.tickets: OrderedDict[CallerT, int] = OrderedDict()
        self._offered: dict[CallerT, int] = {}

    def __repr__(self) -> str:
        return (
            f"Admission(running={self.running}, held={self.held}, limit={self.limit}, "
            f"tickets={list(self.tickets.values())}{', leaving' if self.is_leaving else ''})"
        )

    def admit(self, caller: CallerT) -> bool:
        """Whether a request may run; it counts as running then, else the caller has a ticket (not when
        leaving).
        """
        if self.running + self.held < self.limit and not self.is_leaving:
            self.running += 1
            return True
        if not self.is_leaving:
            self.tickets[caller] = self.tickets.get(caller, 0) + 1
        return False

    def enter(self, caller: CallerT, is_claim: int, is_beyond: int) -> bool:
        """As `claim` or `admit`; one that goes beyond the limit runs unless this replica leaves, and has no ticket."""
        if not is_beyond:
            return self.claim(caller) if is_claim else self.admit(caller)
        self.running += not self.is_leaving
        return not self.is_leaving

    def claim(self, caller: CallerT) -> bool:
        """As `admit`, for a request that answers an offer: it takes the slot that is held for it, also while
        leaving.
        """
        if not self._take_back(caller):
            return self.admit(caller)
        self.running += 1
        return True

    def decline(self, caller: CallerT) -> None:
        """The caller does not want a slot it was offered, nor another one."""
        self._take_back(caller)
        self.tickets.pop(caller, None)

    def want(self, caller: CallerT, waiting: int) -> None:
        """The caller says how many requests wait at its side; 0 gives its ticket back. Its place in line
        stays.
        """
        wanted = waiting - self._offered.get(caller, 0)
        if wanted <= 0 or self.is_leaving:
            self.tickets.pop(caller, None)
        else:
            self.tickets[caller] = wanted

    def release(self) -> None:
        """A running request ended."""
        self.running -= 1

    def forget(self, caller: CallerT) -> None:
        """The caller is gone; its running requests are released one by one."""
        self.held -= self._offered.pop(caller, 0)
        self.tickets.pop(caller, None)

    def next_offer(self) -> CallerT | None:
        """The caller to offer a free slot to, which is held for it from now on; None when nobody waits or
        nothing is free.
        """
        if not self.tickets or self.is_leaving or self.running + self.held >= self.limit:
            return None
        caller, wanted = self.tickets.popitem(last=False)
        if wanted > 1:
            self.tickets[caller] = wanted - 1
        self.held += 1
        self._offered[caller] = self._offered.get(caller, 0) + 1
        return caller

    def leave(self) -> None:
        """Take nothing new from now on, except what claims a slot already offered."""
        self.is_leaving = True
        self.tickets.clear()

    def end(self) -> None:
        """Take nothing at all any more, not even for slots that were offered: the instance is about to be closed."""
        self.leave()
        self._offered.clear()
        self.held = 0

    def _take_back(self, caller: CallerT) -> bool:
        count = self._offered.get(caller, 0)
        if not count:
            return False
        if count == 1:
            del self._offered[caller]
        else:
            self._offered[caller] = count - 1
        self.held -= 1
        return True
