"""The client's connection while a replica has it on loan for the body of one answer (`wire/lending.py`)."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from servd.ground.clock import SystemClock
from servd.wire.http_answers import answer_head, framing, has_content
from servd.wire.lending import LendingDoor
from servd.wire.lent_socket import LentSocket
from servd.wire.records import ASK, BACK, LENT_EARLY_BYTES, WROTE
from servd.wire.write_right import GivenConnection

_wall_time = SystemClock().wall_time

_ASK_S = 1.0
"""So long an answer waits to be lent its client, before it goes through the caller."""
_WORD_S = 5.0
"""So long a replica that finds its client gone waits for the caller to say what becomes of the request."""


class Lender(Protocol):
    """What is asked of the caller's peer."""

    door: LendingDoor
    key: int

    def send_with_next(self, record: tuple[Any, ...]) -> None:
        """Send one record together with the next."""
        ...

    def invite(self) -> None:
        """Clients' connections may come with requests."""
        ...

    def send(self, record: tuple[Any, ...]) -> None:
        """Send one record at the end of this turn."""
        ...


class Borrowing:
    """One loan, from the question on.

    is_lost: the client is gone, and the caller has not said so. is_torn: a piece was left in the midst, so the answer cannot end
    well.
    """

    __slots__ = (
        "_call_id",
        "_given",
        "_head",
        "_is_ended",
        "_lender",
        "_lent",
        "_loan",
        "_status",
        "_turn",
        "_waiter",
        "is_lost",
        "is_torn",
    )

    def __init__(self, lender: Lender, call_id: int, given: GivenConnection | None = None) -> None:
        self._given = given
        self._head = b""
        self._status = 0
        self._lender = lender
        self._call_id = call_id
        self._loan: asyncio.Future[LentSocket | None] | None = None
        self._lent: LentSocket | None = None
        self._waiter: asyncio.Future[None] | None = None
        # tasks of one handler may send at the same time
        self._turn = asyncio.Lock()
        self._is_ended = False
        self.is_lost = self.is_torn = False

    def __repr__(self) -> str:
        return f"Borrowing({self._lent or 'nothing lent'})"

    def _take(self, lent: LentSocket | None) -> None:
        if self._loan is not None and not self._loan.done():
            self._loan.set_result(lent)
        elif lent is not None:
            lent.close()

    def begin(self, status: int, block: bytes, request_id: str, size: int) -> bool:
        """Whether the answer goes to the connection that came with the request, its head before the first piece. If not, that
        is let go of.

        Args:
            status: negative: the connection shall end after it.
            block: header lines, those about the length as the application gave them.
            size: bytes of the first piece.
        """
        how = framing("GET", status, "1.1", block, None)
        given, self._given = self._given, None
        if given is None:
            return False
        if size < LENT_EARLY_BYTES or not has_content("GET", status) or not (how.is_chunked or how.content_bytes):
            given.close()
            return False
        if (descriptor := given.take()) is None:
            return False
        self._lent = LentSocket(asyncio.get_running_loop(), descriptor, how.content_bytes)
        self._status = status
        self._head = answer_head(status, how.block, request_id.encode(), _wall_time())
        return True

    async def ask(self) -> None:
        """Ask for the client's connection, and wait for the answer."""
        if not self._lender.door.open():
            return
        async with self._turn:
            await self._ask()

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        self._loan = loan = loop.create_future()
        door, key = self._lender.door, self._lender.key
        door.expect(key, self._call_id, self._take)
        self._lender.send((ASK, self._call_id))
        timer = loop.call_later(_ASK_S, self._take, None)
        try:
            self._lent = await loan
            if self._lent is not None:
                self._lender.invite()
        finally:
            timer.cancel()
            door.forget(key, self._call_id)
            self._loan = None
            if self._lent is None:
                # also where the caller has lent it, and it has not come, or in the moment in which the handler was cancelled
                if loan.done() and not loan.cancelled() and (late := loan.result()) is not None:
                    late.close()
                self._tell(0, None)
            elif self._is_ended:
                self.give_back()

    async def write(self, body: memoryview, at_once: bool) -> memoryview:
        """Write a piece of the body; gives what of it must go through the caller.

        Args:
            at_once: do not wait for the client: give the connection back with what the kernel did not take.

        Raises:
            ValueError: the body is longer than was said.
            ConnectionResetError: an earlier piece was cut off.
        """
        async with self._turn:
            if self.is_torn:
                raise ConnectionResetError("a piece of the body was cut off: the connection ends with it")
            return await self._write(body, at_once)

    async def _write(self, body: memoryview, at_once: bool) -> memoryview:
        lent = self._lent
        if lent is None:
            return body
        pieces = lent.frame(body)
        if self._head:
            pieces.insert(0, memoryview(self._head))
        whole = left = _size(pieces)
        try:
            while not self._is_ended:
                try:
                    lent.write_some(pieces)
                except OSError:
                    await self._wait_for_word()
                    break
                left = _size(pieces)
                if not pieces:
                    self._head = b""
                    lent.count(len(body))
                    break
                if at_once and len(pieces) == 1:
                    self._head = b""
                    lent.count(len(body) - len(pieces[0]))
                    self.give_back()
                    return pieces[0]
                await self._wait(lent.watch, lent.unwatch)
        except BaseException:
            # whoever sends has been cancelled in the midst of it
            self.is_torn = left < whole
            if self.is_torn:
                self._head = b""
                lent.count(len(body) - min(len(body), max(0, left - (2 if lent.left is None else 0))))
            raise
        return body[:0]

    def give_back(self, *, has_more: bool = False) -> None:
        """Nothing more is written; tells the caller, where the request goes on. has_more: and sends it something else then."""
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.close()
            self._tell(lent.written, lent.left, has_more=has_more)

    def end(self) -> None:
        """The answer is over, or the caller knows that its client is gone: nothing is written and told any more."""
        self._is_ended = True
        if self._given is not None:
            self._given.close()
            self._given = None
        self._take(None)
        self.give_back()
        self._wake()

    def _tell(self, size: int, left: int | None, *, has_more: bool = False) -> None:
        if self._is_ended or self._head:
            # what has no head was not begun: its end says all there is
            return
        send = self._lender.send_with_next if has_more else self._lender.send
        send((WROTE, self._call_id, self._status, size, left) if self._status else (BACK, self._call_id, size))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, begin: Callable[[Callable[[], None]], Any], end: Callable[[], None]) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        begin(self._wake)
        try:
            await self._waiter
        finally:
            end()

    async def _wait_for_word(self) -> None:
        """The client is gone; what becomes of the request is the caller's to say, who sees it, too."""
        if not self._is_ended:
            timer = asyncio.get_running_loop().call_later(_WORD_S, self._wake)
            await self._wait(lambda _: None, timer.cancel)
            self.is_lost = not self._is_ended


def _size(pieces: list[memoryview]) -> int:
    return sum(map(len, pieces))
