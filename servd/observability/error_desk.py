"""The controller's book of errors, and the file in which the next controller finds it."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection

from servd.exceptions import ProtocolError
from servd.ground.host_limits import told
from servd.ground.package import PROTOCOL
from servd.observability.error_groups import ErrorBook, KeptErrors
from servd.wire.codec import Renew, decode_message, encode_message

FILE_NAME = "errors.state"
WRITE_EVERY_S = 10.0
"""Between two writings of the book, unless an error is new: it may have megabytes."""

_MARK = b"protocol "

logger = logging.getLogger(__name__)


class ErrorDesk:
    """Keeps a book in a file. Without one that can be written the book goes on.

    Args:
        renewal: what makes a message of a protocol one of today's, None if it is one.
    """

    def __init__(self, path: str, renewal: Callable[[int], Renew | None]) -> None:
        self._path = path
        self._renewal = renewal
        self._trouble = ""
        self.book = ErrorBook(self._read().errors)
        self._written = self.book.version
        self._begun = self.book.begun
        self._write_at = float("-inf")

    def __repr__(self) -> str:
        return f"ErrorDesk({self._path}, {self.book})"

    async def tend(self, living: Collection[str], now: float) -> None:
        """To be called now and then: write what changed, an error that is new at once, else every `WRITE_EVERY_S` at most.

        living: ids of all replicas that may still report. now: monotonic seconds.
        """
        self.book.forget_dead(living)
        if self._written == self.book.version or (now < self._write_at and self._begun == self.book.begun):
            return
        self._write_at, self._begun = now + WRITE_EVERY_S, self.book.begun
        version, data = self.book.version, self._encoded()
        try:
            await asyncio.to_thread(self._write, data)
        except (OSError, RuntimeError) as error:
            # the disk is full, or there is no thread: it is tried again
            self._tell(told(error))
            return
        self._written = version
        self._tell("")

    def close(self) -> None:
        """Write what changed, now."""
        if self._written != self.book.version:
            with contextlib.suppress(OSError):
                self._write(self._encoded())

    def _encoded(self) -> bytes:
        return b"%b%d\n" % (_MARK, PROTOCOL) + encode_message(self.book.content())

    def _write(self, data: bytes) -> None:
        draft = f"{self._path}.new"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.replace(draft, self._path)

    def _read(self) -> KeptErrors:
        try:
            with open(self._path, "rb") as file:
                head, _, data = file.read().partition(b"\n")
            found = decode_message(data, self._renewal(int(head.removeprefix(_MARK))))
            if isinstance(found, KeptErrors):
                return found
        except FileNotFoundError:
            pass
        except (OSError, ValueError, ProtocolError) as error:
            # what happened before is worth a line, no more
            logger.warning("errors_forgotten path=%s reason=%s", self._path, error)
        return KeptErrors(())

    def _tell(self, trouble: str) -> None:
        """Say once what is wrong, and that it is over."""
        if trouble != self._trouble:
            if trouble:
                logger.warning("errors_not_kept path=%s reason=%s", self._path, trouble)
            else:
                logger.info("errors_kept_again path=%s", self._path)
        self._trouble = trouble
