"""The loggers of servd's own modules, which no configuration of the application silences."""

import logging

_PREFIX = "servd."


def keep_own_loggers() -> None:
    """Let them speak whatever is configured from now on: `logging.config` silences all loggers that it is not told of."""
    manager = logging.root.manager
    for name, logger in manager.loggerDict.items():
        if type(logger) is logging.Logger and name.startswith(_PREFIX):
            logger.__class__ = _OwnLogger
    if manager.loggerClass is None:
        # those of modules that are loaded later
        manager.loggerClass = _new_logger  # type: ignore[assignment]


class _OwnLogger(logging.Logger):
    """A logger that application code knows nothing of."""

    @property
    def disabled(self) -> bool:
        """Never."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Whoever configures all loggers does not mean this one."""


def _new_logger(name: str) -> logging.Logger:
    return _OwnLogger(name) if name.startswith(_PREFIX) else logging.getLoggerClass()(name)
