"""Questions for the Python stacks of living replicas, and their answers."""

import asyncio
from collections.abc import Callable
from typing import Any

from servd.exceptions import NoAnswerError
from servd.wire.messages import StackReport, StackWish

ANSWER_LIMIT_S = 5.0


class StackRequests:
    """Asks replicas over their control lines.

    Args:
        send: sends a message to the replica of that id; False when it has no line.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[str, Any], bool]) -> None:
        self._loop = loop
        self._send = send
        self._asked: dict[int, tuple[str, asyncio.Future[str]]] = {}
        self._next = 1

    async def ask(self, replica_id: str) -> str:
        """The stacks of a replica.

        Raises:
            NoAnswerError: it is not connected, ends before it answers, or is silent for 5 s.
        """
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[str] = self._loop.create_future()
        self._asked[number] = (replica_id, future)
        try:
            if not self._send(replica_id, StackWish(number)):
                raise NoAnswerError(f"replica {replica_id} has not said hello yet, or is gone")
            return await asyncio.wait_for(future, ANSWER_LIMIT_S)
        except TimeoutError:
            raise NoAnswerError(
                f"replica {replica_id} did not answer within {ANSWER_LIMIT_S:.0f} s: it is stopped, or native code holds "
                "the interpreter's lock"
            ) from None
        finally:
            del self._asked[number]

    def answered(self, report: StackReport) -> None:
        """A replica has answered."""
        _, future = self._asked.get(report.request_id, ("", None))
        if future is not None and not future.done():
            future.set_result(report.text)

    def gone(self, replica_id: str) -> None:
        """A replica has ended; it answers nothing any more."""
        for asked, future in self._asked.values():
            if asked == replica_id and not future.done():
                future.set_exception(NoAnswerError(f"replica {replica_id} ended before it answered"))
