"""One logging setup: lines on stderr in the foreground, and rotating files under `<log root>/serve/`."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servd.ground.names import in_file_name
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import is_on, variable
from servd.observability.application_lines import ApplicationLines
from servd.observability.line_formatter import LineFormatter, RequestFields
from servd.observability.log_file import LogFile, make_directory
from servd.observability.own_loggers import is_written, keep_own_loggers, speak_through
from servd.observability.shown_lines import HurriedLines, ShownLines, outlets_of

LAST_LINES_S = 0.5
"""How long the end of a process waits for whoever reads its stderr."""
LAST_LINES = 50
LAST_BYTES = 8192
STDERR_VARIABLE = "LOG_TO_STDERR"
LOGGER_NAMES = ("servd", "ray.serve")
"""Loggers that are set up; the second is an alias that Ray Serve applications write to."""

_OWN_PREFIXES = tuple(f"{name}." for name in LOGGER_NAMES)

logger = logging.getLogger(__name__)

_own_levels: dict[str, int] = {}
"""Level that was set here, by logger ("" is the root); a logger that has another one got it from the user."""

_application_lines: ApplicationLines | None = None
_shown_lines: ShownLines | None = None
"""What is to be shown on stderr without ever waiting for it; None = nothing of this process."""

_placed: tuple[LogFile, Path] | None = None
"""The file of a process that runs an application, and where it lies unless a `logging_config` says otherwise."""

_is_revived = False


@dataclass(frozen=True, slots=True)
class Style:
    """How a process writes its lines. attributes: of `logging.LogRecord`, beside those that each line has."""

    is_json: bool
    level: int
    has_access_log: bool
    attributes: tuple[str, ...] = ()


def style_of(config: Mapping[str, Any]) -> Style:
    """What a `logging_config` asks for; keys that it does not have follow the environment.

    Access lines are of level INFO.
    """
    encoding = config.get("encoding") or ("JSON" if is_on("ENABLE_JSON_LOGGING") else "TEXT")
    default = "DEBUG" if is_on("DEBUG_LOG") else "INFO"
    level = logging.getLevelNamesMapping().get(config.get("log_level") or default, logging.INFO)
    has_access_log = bool(config.get("enable_access_log", True)) and level <= logging.INFO
    return Style(encoding == "JSON", level, has_access_log, tuple(config.get("additional_log_standard_attrs") or ()))


def controller_file(pid: int) -> str:
    """Name of a controller's log file."""
    return f"controller_{pid}.log"


def proxy_file(ip: str) -> str:
    """Name of the proxies' log file; all proxies of the host share it."""
    return f"http_proxy_{ip}.log"


def replica_file(deployment: str, replica_tag: str) -> str:
    """Name of a replica's log file; `deployment` is the full name. It fits into a directory whatever the names are."""
    full_name, _, suffix = replica_tag.rpartition("#")
    return f"deployment_{in_file_name(deployment)}_{in_file_name(full_name)}#{suffix}.log"


def last_lines(log_dir: str, file_name: str) -> tuple[str, ...]:
    """The last lines of a log file under the log root, for people: at most 50 and 8 KiB; none when it cannot be read."""
    try:
        with open(Path(log_dir) / "serve" / file_name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - LAST_BYTES, 0))
            data = file.read(LAST_BYTES)
    except OSError:
        return ()
    lines = data.decode(errors="backslashreplace").splitlines()
    # the first one may have lost its begin
    return tuple(lines[1:] if size > LAST_BYTES else lines)[-LAST_LINES:]


def setup(
    component: str,
    component_id: str,
    log_dir: str,
    file_name: str,
    *,
    stderr_level: int = logging.INFO,
    request_fields: RequestFields | None = None,
    runs_application: bool = False,
    is_serving: bool = False,
    on_error: Callable[[BaseException], None] | None = None,
) -> LogFile:
    """Send servd's log lines of this process to its file and to stderr.

    Handlers and levels that the user gave to loggers stay.

    Args:
        component, component_id: e.g. "http_proxy" and its ip, "replica" and its tag.
        log_dir: the log root; the file lies in `serve/` under it.
        stderr_level: lowest level shown on stderr. `SERVD_LOG_TO_STDERR=0` shows nothing there, as a detached daemon has
            it; a level name shows servd's own lines from that level on, and what is printed as it is.
        request_fields: where the fields of the running request come from.
        runs_application: also what application code logs, warns of and prints becomes lines, from now on.
        is_serving: it may have a thread for what it shows, so that no moment is waited for whoever reads stderr too slowly.
        on_error: gets each exception that application code logs as an error.

    Returns:
        The file, for an `AccessLog`.
    """
    global _shown_lines, _placed
    file = LogFile(Path(log_dir) / "serve" / file_name)
    formatter = LineFormatter(component, component_id, request_fields)
    handlers: list[logging.Handler] = [_FileHandler(file)]
    wish = _stderr_wish()
    shown = None
    outlets: dict[str, ShownLines | HurriedLines] = {}
    if wish != "0":
        # not what `sys.stderr` is: an import may have put anything there, or nothing
        outlets = outlets_of(ShownLines if is_serving else HurriedLines)
        stream = outlets["stderr"]
        if isinstance(stream, ShownLines):
            _shown_lines = stream
        shown = _StderrHandler(stream, logging.getLevelNamesMapping().get(wish, logging.NOTSET))
        shown.setLevel(stderr_level)
        handlers.append(shown)
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(formatter.lets_pass)
    _hand_over(handlers)
    speak_through(handlers)
    if runs_application:
        _placed = (file, file.path)
        as_they_are = outlets_of(HurriedLines) if wish in logging.getLevelNamesMapping() else {}
        _application().direct(handlers, shown=shown, as_they_are=as_they_are, outlets=outlets, on_error=on_error)
    configure({})
    revive()
    return file


def _hand_over(handlers: list[logging.Handler]) -> None:
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            if isinstance(old, _OWN_HANDLERS):
                logger.removeHandler(old)
                old.close()
        for handler in handlers:
            logger.addHandler(handler)
        logger.propagate = False


def catch_descriptors(file: LogFile) -> None:
    """Let descriptors 1 and 2 of this process be its log file, where stderr is for nobody.

    So what native code and child processes print lies in the file as it is, without a header, and whatever ends the process
    cannot lose it.
    """
    if _stderr_wish() == "0":
        file.stand_in_for(1, 2)


def show_access() -> Callable[[bytes], object] | None:
    """What shows access lines on stderr; None where they are not wanted there."""
    return (
        _shown_lines.write
        if _shown_lines is not None and _stderr_wish() not in logging.getLevelNamesMapping()
        else None
    )


def finish() -> None:
    """Write what the application has printed of lines without an end, show what waits; the process is about to go."""
    if _application_lines is not None:
        _application_lines.finish()
    if _shown_lines is not None:
        _shown_lines.finish(LAST_LINES_S)


def _stderr_wish() -> str:
    return variable(STDERR_VARIABLE, "1").upper()


def _application() -> ApplicationLines:
    global _application_lines
    if _application_lines is None:
        _application_lines = ApplicationLines(_is_written)
        _application_lines.install()
        logging.captureWarnings(True)
    return _application_lines


def _is_own(name: str) -> bool:
    return f"{name}.".startswith(_OWN_PREFIXES)


def _is_written(logger: logging.Logger) -> bool:
    """Whether it is one of servd's, and writes."""
    return _is_own(logger.name) and is_written(logger)


def configure(config: Mapping[str, Any]) -> Style:
    """Write the lines of this process from now on as a `logging_config` says; gives what it comes to."""
    style = style_of(config)
    _place(str(config.get("logs_dir") or ""))
    names: tuple[str, ...] = LOGGER_NAMES
    if _application_lines is not None:
        _application_lines.level = style.level
        names += ("",)
    for name in names:
        logger = logging.getLogger(name)
        # the root begins with a level of its own, which the user may also have chosen once it had another
        untouched = (logging.NOTSET, _own_levels.get(name)) if name else (_own_levels.get(name, logging.WARNING),)
        if logger.level in untouched:
            # not in vain: what all loggers know of their levels is forgotten with it
            if logger.level != style.level:
                logger.setLevel(style.level)
            _own_levels[name] = style.level
        for handler in logger.handlers:
            if isinstance(handler.formatter, LineFormatter):
                handler.formatter.is_json = style.is_json
                handler.formatter.has_access_lines = style.has_access_log
                handler.formatter.attributes = style.attributes
    return style


def lets_access_lines_through() -> bool:
    """Whether no level that the application has set on a logger says otherwise."""
    return all(logging.getLogger(name).level <= logging.INFO for name in LOGGER_NAMES)


def _place(logs_dir: str) -> None:
    """Write the file of this process in that directory from now on, "" = among all others."""
    if _placed is None:
        return
    file, usual = _placed
    trouble = make_directory(logs_dir) if logs_dir else ""
    if trouble:
        logger.warning("logs_dir_not_used reason=%s instead=%s", trouble, usual.parent)
    if logs_dir and not trouble:
        file.move(Path(logs_dir) / usual.name, usual)
    else:
        file.move(usual)


def revive(*, for_children: bool = False) -> None:
    """Let servd's loggers speak again, its own from now on: `logging.config` silences all that it finds.

    Args:
        for_children: no code of the user's runs any more, but in children that are forked: they need not look at every logger.
    """
    global _is_revived
    if _is_revived:
        return
    _is_revived = for_children
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and _is_own(name):
            logger.disabled = False
    keep_own_loggers()


class _FileHandler(logging.Handler):
    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


class _StderrHandler(logging.StreamHandler[Any]):
    """own_level: lowest level of servd's own lines; what the user's code says to a logger of ours is not ours to hide."""

    def __init__(self, stream: Any, own_level: int) -> None:
        super().__init__(stream)
        self._own_level = own_level

    def filter(self, record: logging.LogRecord) -> bool:
        # "servd" itself is what users' code gets for "ray.serve"
        is_own = record.name.startswith("servd.")
        return (record.levelno >= self._own_level or not is_own) and bool(super().filter(record))


_OWN_HANDLERS = (_FileHandler, _StderrHandler)
