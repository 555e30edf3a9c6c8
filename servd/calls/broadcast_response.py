"""What all replicas of a deployment answer to one call."""

import asyncio
import concurrent.futures
from typing import Any

from servd.calls import pickling
from servd.calls.process import Ticket
from servd.calls.response import call_error


class DeploymentBroadcastResponse:
    """What all replicas of a deployment answer to one call, in no order.

    Args:
        outcomes: values and errors, one per replica, once all are there.
    """

    __slots__ = ("_outcomes",)

    def __init__(self, outcomes: "concurrent.futures.Future[list[Any]]") -> None:
        self._outcomes = outcomes

    def results(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        """The values, waited for on this thread.

        Args:
            return_exceptions: a replica's error stands in its place; else the first one is raised.

        Raises:
            TimeoutError: not all of them after `timeout_s` seconds; the calls go on.
            RuntimeError: on an event-loop thread.
        """
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("this would block the event loop: use `await response.results_async()`")
        try:
            outcomes = self._outcomes.result(timeout_s)
        except TimeoutError:
            if self._outcomes.done():
                raise
            raise TimeoutError(f"not all replicas have answered after {timeout_s} s; the calls go on") from None
        return _values(outcomes, return_exceptions)

    async def results_async(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        """As `results`, awaited in any loop."""
        waiting = asyncio.wrap_future(self._outcomes)
        done, _ = await asyncio.wait([waiting], timeout=timeout_s)
        if not done:
            raise TimeoutError(f"not all replicas have answered after {timeout_s} s; the calls go on")
        return _values(waiting.result(), return_exceptions)


def _values(outcomes: list[Any], return_exceptions: bool) -> list[Any]:
    failed = next((one for one in outcomes if isinstance(one, _Failed)), None)
    if failed is not None and not return_exceptions:
        raise failed.error
    return [one.error if isinstance(one, _Failed) else one for one in outcomes]


class _Failed:
    """In the place of a value: why there is none. A replica may answer with an exception too."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


async def outcome_of(ticket: Ticket) -> Any:
    """What a call of a broadcast came to, as `DeploymentBroadcastResponse` takes it."""
    try:
        return pickling.loads(await ticket)
    except Exception as error:
        return _Failed(call_error(error))
