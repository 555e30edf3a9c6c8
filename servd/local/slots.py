"""Requests that run and wait at a deployment in local mode: the rules of a replica and its callers, in one process."""

import asyncio

from servd.calls.circles import circle, knot
from servd.calls.request_context import RequestContext
from servd.exceptions import BackPressureError


class LocalSlots:
    """The slots of one deployment. All of it on the loop.

    Args:
        deployment: full name.
        replica_id: of the only replica.
        limit: requests that run at a time.
        max_queued: requests that may wait; -1 = no bound.
        backpressure: as of `DeploymentTargets`.
    """

    def __init__(
        self,
        deployment: str,
        replica_id: str,
        limit: int,
        max_queued: int,
        backpressure: tuple[int, float | None] = (503, None),
    ) -> None:
        self._backpressure = backpressure
        self._deployment = deployment
        self._limits = {replica_id: limit}
        self._max_queued = max_queued
        self._free = limit
        self._waiting: list[tuple[RequestContext, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"LocalSlots({self._deployment}, free={self._free}, waiting={len(self._waiting)})"

    async def take(self, context: RequestContext) -> None:
        """A slot, as soon as there is one; give it back with `release`.

        Args:
            context: of the request that calls.

        Raises:
            BackPressureError: too many wait. ServdError: the call could never run.
        """
        if self._free:
            self._free -= 1
            return
        refused = circle(self._deployment, self._limits, context.ancestors)
        if refused is not None:
            raise refused
        if 0 <= self._max_queued <= len(self._waiting):
            raise BackPressureError(self._deployment, len(self._waiting), self._max_queued, *self._backpressure)
        waiting = [*((other.request_id, other.ancestors) for other, _ in self._waiting)]
        refused = knot(self._deployment, self._limits, [*waiting, (context.request_id, context.ancestors)])
        # somebody who holds no slot here cannot be the one who holds up the others
        if refused is not None and self._limits.keys() & context.ancestors:
            raise refused
        place = context, asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            else:
                self.release()
            raise

    def release(self) -> None:
        """The request that had a slot has ended: the oldest that waits gets it."""
        if self._waiting:
            _, told = self._waiting.pop(0)
            # one that was cancelled in this very turn gives the slot back itself
            if not told.done():
                told.set_result(None)
            return
        self._free += 1
