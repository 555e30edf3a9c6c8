"""What application code logs and prints, as lines of its process's log: with time, level and the request that runs.

How this works: a record is seen where Python hands it to handlers, after the loggers' levels and filters. So loggers, handlers
and `propagate` stay the application's own, whenever and however it sets them, and none of it can lose a line. `sys.stdout` and
`sys.stderr` are replaced by streams that make a record of each line, the same streams in a fork server and in what it forks:
a handler that the application made at its import goes on writing to them. What such a handler prints of a record that was seen is
no line of its own, also where it gets the record through a queue, on another thread.
"""

import functools
import io
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any, Protocol, TypeVar, cast

LONGEST_PRINTED = 64 * 1024
"""Characters of a printed line; what goes on for longer without an end becomes several lines."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_LEVELS = {"stdout": logging.INFO, "stderr": logging.WARNING}
_MOST_QUEUED = 1000
"""Records that are known to have gone to a queue of the application's; of older ones a handler's line is one more."""
_DEEPEST = 2
"""A line about a line that could not be written is written still; whatever that prints is lost."""


class Outlet(Protocol):
    """What shows lines, and never holds up who writes them for long."""

    def write(self, lines: bytes | str, /) -> None:
        """Show them some time soon, or drop them."""
        ...


def _passed_over(function: _Function) -> _Function:
    """Make a function's frames look like logging's own: a handler that gives records to another library goes up past these to
    find who logged."""
    plain = cast(FunctionType, function)
    plain.__code__ = plain.__code__.replace(co_filename=logging.__file__)
    return function


class _State(threading.local):
    depth = 0
    in_handlers = 0
    has_printed = False
    repeats = False


class ApplicationLines:
    """Where the lines of this process's application go: nowhere until `direct`.

    Args:
        is_written: whether what a logger says is written by handlers that it has.

    Attributes:
        level: lowest level of a record.
    """

    def __init__(self, is_written: Callable[[logging.Logger], bool]) -> None:
        self._state = _State()
        self._is_written = is_written
        self._streams: list[PrintedLines] = []
        self._handlers: Sequence[logging.Handler] = ()
        self._shown: logging.Handler | None = None
        self._as_they_are: Mapping[str, Outlet] = {}
        self._outlets: Mapping[str, Outlet] = {}
        self._on_error: Callable[[BaseException], None] | None = None
        self._queued: dict[tuple[object, ...], None] = {}
        self.level = logging.INFO

    def __repr__(self) -> str:
        return f"ApplicationLines({self._handlers}, from {logging.getLevelName(self.level)})"

    def direct(
        self,
        handlers: Sequence[logging.Handler],
        *,
        shown: logging.Handler | None = None,
        as_they_are: Mapping[str, Outlet] | None = None,
        outlets: Mapping[str, Outlet] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Let lines go to these handlers from now on; what was printed of a line that has no end yet is dropped.

        Args:
            handlers: get each of them, from their own level on.
            shown: one of them, for people. It gets no record that the application's own handlers have printed.
            as_they_are: take what is printed, by `stdout` and `stderr`, as it is; `shown` does not get it then.
            outlets: take whole lines that the application's own handlers print, by `stdout` and `stderr`; unless `as_they_are`.
            on_error: gets each exception that is logged as an error.
        """
        self._outlets = outlets or {}
        self._on_error = on_error
        self._handlers = handlers
        self._shown = shown
        self._as_they_are = as_they_are or {}
        for stream in self._streams:
            stream.rests.clear()

    def install(self) -> None:
        """See all records and all that is printed from now on."""
        call_handlers = logging.Logger.callHandlers
        lines = self

        @_passed_over
        def seen(logger: logging.Logger, record: logging.LogRecord) -> None:
            lines.on_record(logger, record, call_handlers)

        handle = logging.Handler.handle

        @_passed_over
        def handled(handler: logging.Handler, record: logging.LogRecord) -> bool:
            return lines.on_handler(handler, record, handle)

        basic_config = logging.basicConfig

        def configured(**options: Any) -> None:
            # `logging.info()` and the like ask for a handler where there is none, so that they are not lost: here they are not
            if options or sys._getframe(1).f_globals is not vars(logging):
                basic_config(**options)

        logging.basicConfig = functools.update_wrapper(configured, basic_config)
        logging.Logger.callHandlers = seen  # type: ignore[method-assign, assignment]
        logging.Handler.handle = handled  # type: ignore[method-assign, assignment]
        for name, level in _LEVELS.items():
            # none where the process has no such descriptor
            if (stream := getattr(sys, name)) is not None:
                self._streams.append(PrintedLines(stream, name, level, self))
                setattr(sys, name, self._streams[-1])

    @_passed_over
    def on_record(self, logger: logging.Logger, record: logging.LogRecord, call_handlers: Callable[..., None]) -> None:
        """A record passed a logger. call_handlers: what Python does with it."""
        if record.levelno >= logging.ERROR and record.exc_info:
            self._note_error(logger, record)
        state = self._state
        outside, state.has_printed = state.has_printed, False
        state.in_handlers += 1
        try:
            # without any handler Python would print it
            if logger.hasHandlers():
                call_handlers(logger, record)
        finally:
            state.in_handlers -= 1
            has_printed, state.has_printed = state.has_printed, outside
            # what the application prints by itself is wanted, whatever the lowest level is
            if (record.levelno >= self.level or has_printed) and not self._is_written(logger):
                self._write(record, is_shown=not has_printed)

    @_passed_over
    def on_handler(self, handler: logging.Handler, record: logging.LogRecord, handle: Callable[..., bool]) -> bool:
        """A handler gets a record, from a logger or whoever. handle: what Python does with it."""
        state = self._state
        if state.in_handlers:
            # as `logging.handlers.QueueHandler`, which few have loaded
            if record.levelno >= self.level and hasattr(handler, "enqueue"):
                self._queued[_key(record)] = None
                if len(self._queued) > _MOST_QUEUED:
                    # other threads may do the same
                    with suppress(RuntimeError, StopIteration):
                        self._queued.pop(next(iter(self._queued)), None)
        elif self._queued and _key(record) in self._queued:
            state.repeats = True
            try:
                return handle(handler, record)
            finally:
                state.repeats = False
        return handle(handler, record)

    def _note_error(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and self._on_error is not None and not self._is_written(logger):
            self._on_error(error)

    def on_printed(self, stream: "PrintedLines", text: str) -> bool:
        """Something is printed; whether lines are to be made of it."""
        state, as_it_is = self._state, self._as_they_are.get(stream.called)
        if state.repeats:
            if as_it_is is not None:
                stream.pass_on(text, as_it_is)
            return False
        if state.in_handlers:
            state.has_printed = True
        if as_it_is is not None and state.depth < _DEEPEST:
            stream.pass_on(text, as_it_is)
        elif state.in_handlers and state.depth < _DEEPEST and (outlet := self._outlets.get(stream.called)) is not None:
            stream.show(text, outlet)
        return not state.in_handlers

    def on_line(self, name: str, level: int, text: str) -> None:
        """A line was printed: it is wanted, whatever the lowest level is."""
        self._write(logging.LogRecord(name, level, name, 0, text, None, None), is_shown=not self._as_they_are)

    def finish(self) -> None:
        """Write what was printed of lines that have no end yet."""
        for stream in self._streams:
            stream.finish()

    def _write(self, record: logging.LogRecord, *, is_shown: bool) -> None:
        state = self._state
        if state.depth >= _DEEPEST:
            return
        state.depth += 1
        # what the handlers have to tell is no part of what the application's handlers print
        within, state.in_handlers = state.in_handlers, 0
        try:
            for handler in self._handlers:
                if record.levelno >= handler.level and (is_shown or handler is not self._shown):
                    handler.handle(record)
        finally:
            state.depth -= 1
            state.in_handlers = within


def _key(record: logging.LogRecord) -> tuple[object, ...]:
    """What a copy of it has too, as a queue hands on."""
    return record.created, record.thread, record.name, record.lineno


class PrintedLines(io.TextIOWrapper):
    """A standard stream whose text becomes lines; its `buffer` and its descriptor take what they are given as it is.

    Like a terminal it shows of a line what follows its last carriage return: a progress bar is one line when it ends.

    Attributes:
        called: `stdout` or `stderr`.
        rests: what each thread has printed of a line without its end, by the thread's number.
    """

    def __init__(self, behind: Any, name: str, level: int, lines: ApplicationLines) -> None:
        super().__init__(behind.buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self.rests: dict[int, str] = {}
        self.called = name
        self._handlers_rests: dict[int, str] = {}
        self._level = level
        self._lines = lines

    def __repr__(self) -> str:
        return f"PrintedLines({self.called})"

    def write(self, text: str, /) -> int:
        """Take text; each line that ends is written at once, under the request that runs."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._lines.on_printed(self, text):
            thread = threading.get_ident()
            *whole, rest = (self.rests.pop(thread, "") + text).split("\n")
            for line in whole:
                self._end_line(line)
            # one at the very end may be half of the end of a line
            rest = rest[rest.rfind("\r", 0, -1) + 1 :]
            if len(rest) > LONGEST_PRINTED:
                self._end_line(rest)
            elif rest:
                self.rests[thread] = rest
        return len(text)

    def pass_on(self, text: str, outlet: Outlet) -> None:
        """Give text to the outlet as it is, behind what was written to `buffer` before."""
        # its reader may be gone, or somebody has closed it
        with suppress(OSError, ValueError):
            self.buffer.flush()
        outlet.write(text)

    def show(self, text: str, outlet: Outlet) -> None:
        """Give what a handler of the application's prints to the outlet, once its line has an end."""
        thread = threading.get_ident()
        whole, end, rest = (self._handlers_rests.pop(thread, "") + text).rpartition("\n")
        if len(rest) > LONGEST_PRINTED:
            whole, end, rest = whole + end + rest, "\n", ""
        if rest:
            self._handlers_rests[thread] = rest
        if end:
            outlet.write(whole + end)

    def finish(self) -> None:
        """Write the lines that have no end yet."""
        while self.rests:
            self._end_line(self.rests.popitem()[1])

    def _end_line(self, line: str) -> None:
        line = line.removesuffix("\r").rpartition("\r")[2]
        if line:
            self._lines.on_line(self.called, self._level, line)
