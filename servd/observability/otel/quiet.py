"""What the library says of our spans: kept out of the log, where it would say it again and again, and told in lines of ours."""

import logging
import threading

from servd.observability.failure import bounded
from servd.observability.own_loggers import leave_alone, overhear
from servd.observability.spans import without_secrets

_TALKATIVE = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
_READ_VARIABLES = ("opentelemetry.exporter.otlp.proto.http._common", "opentelemetry.sdk.resources")
_READS_HEADERS = "opentelemetry.util.re"
"""Tells the whole text of a header that it cannot read, a key of the collector's maybe."""
_HEARD = (*_TALKATIVE, _READS_HEADERS)
_TEXT_CHARACTERS, _LOOKED_AT_CHARACTERS = 500, 4096


def in_short(text: str) -> str:
    """A text of the library's or of a collector's, for logs."""
    # looking for secrets may take the square of its length
    return bounded(without_secrets(text[:_LOOKED_AT_CHARACTERS]), _TEXT_CHARACTERS)


class LeftOut:
    """Hears what the library says of variables while it is entered, on whatever thread it reads them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __enter__(self) -> "LeftOut":
        for name in _READ_VARIABLES:
            overhear(logging.getLogger(name), self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in _READ_VARIABLES:
            leave_alone(logging.getLogger(name), self)

    def listens(self) -> bool:
        """Always."""
        return True

    def hear(self, record: logging.LogRecord) -> None:
        """Keep what is worth a line."""
        if record.levelno >= logging.WARNING:
            self.texts.append(in_short(record.getMessage()))


class Quiet:
    """Keeps what the library says of our spans out of the log: it says it again and again. Others' spans are not ours to hide.

    said: the last line of this thread. bundled: how many spans are lost at a time. has_odd_headers: there are some for the
    endpoint that cannot be read.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        self._lock = threading.Lock()
        self._dropped = 0
        self.said = ""
        self.bundled = 1
        self.has_odd_headers = False
        self._refused, self._why = 0, ""
        for name in _HEARD:
            overhear(logging.getLogger(name), self)

    def __enter__(self) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        self._here.depth -= 1

    def leave(self) -> None:
        """There will be no more of our spans."""
        for name in _HEARD:
            leave_alone(logging.getLogger(name), self)

    def refuse(self, count: int, why: str) -> None:
        """The collector has taken all but so many spans; with 0 it only warns."""
        with self._lock:
            self._refused, self._why = self._refused + count, in_short(why)

    def take_refused(self) -> tuple[int, str]:
        """How many it has refused since this was asked last, and why."""
        with self._lock:
            found = self._refused, self._why
            self._refused, self._why = 0, ""
        return found

    def drop(self, count: int) -> None:
        """So many spans are lost; any thread may say so."""
        with self._lock:
            self._dropped += count

    def take_dropped(self) -> int:
        """How many are since this was asked last."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        return dropped

    def listens(self) -> bool:
        """Whether this thread is about our spans."""
        return bool(getattr(self._here, "depth", 0))

    def hear(self, record: logging.LogRecord) -> None:
        """Keep what is said while it listens."""
        if record.name == _READS_HEADERS:
            self.has_odd_headers = True
            return
        text = record.getMessage()
        if text.startswith("Queue"):
            # the oldest bundle, and only the newest is not full
            self.drop(self.bundled)
        else:
            self.said = in_short(text)
