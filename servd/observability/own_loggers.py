"""Loggers that no configuration of the application silences: those of servd's own modules, and a library's while what it says is
of servd's own doing.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

_PREFIX = "servd."

_handlers: list[logging.Handler] = []


def speak_through(handlers: Sequence[logging.Handler]) -> None:
    """Let these write their lines from now on."""
    _handlers[:] = handlers


def keep_own_loggers() -> None:
    """Let them speak whatever is configured from now on: `logging.config` silences all loggers that it is not told of, and takes
    the handlers of those that it is told of, as of `ray.serve`, which may be another name of theirs.
    """
    manager = logging.root.manager
    for name, logger in manager.loggerDict.items():
        if type(logger) is logging.Logger and name.startswith(_PREFIX):
            logger.__class__ = _OwnLogger
    if manager.loggerClass is None:
        # those of modules that are loaded later
        manager.loggerClass = _new_logger  # type: ignore[assignment]


class Listener(Protocol):
    """Whoever hears what is said while it listens."""

    def listens(self) -> bool:
        """Whether what this thread says now is for it alone."""

    def hear(self, record: logging.LogRecord) -> None:
        """Take one line, of any level."""


def overhear(logger: logging.Logger, listener: Listener) -> None:
    """Let it hear, from now on, what is said to the logger while it listens, and nobody else. A filter would not do: a logger
    that `logging.config` silences, as it does by itself with all that it is not told of, or one of a higher level, asks none.
    """
    if not isinstance(logger, _Overheard):
        # of its own kind still, which may be the application's
        logger.__class__ = type("Overheard", (_Overheard, type(logger)), {})
    assert isinstance(logger, _Overheard)
    logger.listeners = (*logger.listeners, listener)


def leave_alone(logger: logging.Logger, listener: Listener) -> None:
    """Let it hear nothing any more."""
    if isinstance(logger, _Overheard):
        logger.listeners = tuple(one for one in logger.listeners if one is not listener)


class _OwnLogger(logging.Logger):
    """A logger that application code knows nothing of."""

    @property
    def disabled(self) -> bool:
        """Never."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Whoever configures all loggers does not mean this one."""

    def getEffectiveLevel(self) -> int:
        """Of the first above it that has one; where a configuration took servd's away, the one that servd begins with."""
        found: logging.Logger | None = self
        while found is not None and found.parent is not None:
            if found.level:
                return found.level
            found = found.parent
        return logging.INFO

    def callHandlers(self, record: logging.LogRecord) -> None:
        """By way of those above it, and where none of them writes servd's lines any more, to what does."""
        super().callHandlers(record)
        if not is_written(self):
            for handler in _handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)


class _Overheard(logging.Logger):
    listeners: tuple[Listener, ...] = ()

    def isEnabledFor(self, level: int) -> bool:
        return any(one.listens() for one in self.listeners) or super().isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        for listener in self.listeners:
            if listener.listens():
                listener.hear(record)
                return
        super().handle(record)


def is_written(logger: logging.Logger) -> bool:
    """Whether it has the handlers of servd's; a configuration of the user's takes them from a logger that it names."""
    found: logging.Logger | None = logger
    while found is not None:
        if any(handler in _handlers for handler in found.handlers):
            return True
        found = found.parent if found.propagate else None
    return False


def _new_logger(name: str) -> logging.Logger:
    return _OwnLogger(name) if name.startswith(_PREFIX) else logging.getLoggerClass()(name)
