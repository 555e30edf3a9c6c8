"""One logging setup: lines on stderr in the foreground, and rotating files under `<log root>/serve/`.

Lines: level, time, component, component id, then request id, route and application when known, then
`file:line - message`.
"""

import fcntl
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from servd.ground.clock import SystemClock
from servd.ground.names import in_file_name, on_one_line
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import is_on, variable
from servd.observability.described import report_of

MAX_FILE_BYTES = 512 * 1024 * 1024
BACKUP_FILES = 5
RETRY_S = 1.0
"""Between two tries to open a file that is away."""
DEAD_FILES_KEPT = 100
"""Log files of replicas that are gone, of all deployments together."""
LAST_LINES = 50
LAST_BYTES = 8192
STDERR_VARIABLE = "LOG_TO_STDERR"
LOGGER_NAMES = ("servd", "ray.serve")
"""Loggers that are set up; the second is an alias that Ray Serve applications write to."""

RequestFields = Callable[[], tuple[str, str, str]]
"""Gives request id, route and application of the running request, each "" when unknown."""

_own_levels: dict[str, int] = {}
"""Level that was set here, by logger; a logger that has another one got it from the user."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a process writes its lines."""

    is_json: bool
    level: int
    has_access_log: bool


def style_of(config: Mapping[str, Any]) -> Style:
    """What a `logging_config` asks for; keys that it does not have follow the environment.

    Access lines are of level INFO.
    """
    encoding = config.get("encoding") or ("JSON" if is_on("ENABLE_JSON_LOGGING") else "TEXT")
    default = "DEBUG" if is_on("DEBUG_LOG") else "INFO"
    level = logging.getLevelNamesMapping().get(config.get("log_level") or default, logging.INFO)
    return Style(encoding == "JSON", level, bool(config.get("enable_access_log", True)) and level <= logging.INFO)


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


def forget_dead(log_dir: str, living: Collection[str], kept: int = DEAD_FILES_KEPT) -> None:
    """Remove the log files of replicas that are gone, with those they rotated to, all but the newest `kept`.

    living: names as `replica_file` gives them.
    """
    dead = []
    try:
        for entry in os.scandir(Path(log_dir) / "serve"):
            if entry.name.startswith("deployment_") and entry.name.rpartition(".log")[0] + ".log" not in living:
                dead.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(dead)[:-kept]:
            os.unlink(path)
    except OSError:
        # the directory is gone or read-only, or somebody else cleans up: logs are expendable, also to us
        pass


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
) -> "LogFile":
    """Send servd's log lines of this process to its file and to stderr.

    Only servd's own loggers are touched. Handlers and levels that the user gave them stay.

    Args:
        component, component_id: e.g. "http_proxy" and its ip, "replica" and its tag.
        log_dir: the log root; the file lies in `serve/` under it.
        stderr_level: lowest level shown on stderr. `SERVD_LOG_TO_STDERR=0` shows nothing there, as a detached daemon has
            it; a level name shows servd's own lines from that level on.
        request_fields: where the fields of the running request come from.

    Returns:
        The file, for an `AccessLog`.
    """
    file = LogFile(Path(log_dir) / "serve" / file_name)
    formatter = LineFormatter(component, component_id, request_fields)
    handlers: list[logging.Handler] = [_FileHandler(file)]
    wish = variable(STDERR_VARIABLE, "1").upper()
    if wish != "0":
        handlers.append(_StderrHandler(sys.stderr, logging.getLevelNamesMapping().get(wish, logging.NOTSET)))
        handlers[-1].setLevel(stderr_level)
    for handler in handlers:
        handler.setFormatter(formatter)
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            if isinstance(old, _OWN_HANDLERS):
                logger.removeHandler(old)
                old.close()
        for handler in handlers:
            logger.addHandler(handler)
        logger.propagate = False
    configure({})
    revive()
    return file


def configure(config: Mapping[str, Any]) -> Style:
    """Write the lines of this process from now on as a `logging_config` says; gives what it comes to."""
    style = style_of(config)
    for name in LOGGER_NAMES:
        logger = logging.getLogger(name)
        if logger.level in (logging.NOTSET, _own_levels.get(name)):
            logger.setLevel(style.level)
            _own_levels[name] = style.level
        for handler in logger.handlers:
            if isinstance(handler.formatter, LineFormatter):
                handler.formatter.is_json = style.is_json
    return style


def revive() -> None:
    """Let servd's loggers speak again: `logging.config` in a user's module silences all that it finds."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and f"{name}.".startswith(tuple(f"{own}." for own in LOGGER_NAMES)):
            logger.disabled = False


class LogFile:
    """A log file that several processes may append to and that rotates by size, or by the hand of somebody who renames it.

    Logs are expendable: where the file cannot be opened, is removed or takes nothing, lines are lost, and it is tried again.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES, backups: int = BACKUP_FILES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._clock = SystemClock()
        self._is_away = False
        self._look_at = 0.0
        self._fd = self._open_or_none()

    def __repr__(self) -> str:
        return f"LogFile({self._path})"

    def write(self, data: bytes) -> None:
        """Append whole lines; a full or broken disk loses them silently."""
        try:
            status = os.fstat(self._fd)
            if self._is_away or not self._is_in_place(status):
                self._find_again()
            elif status.st_size and status.st_size + len(data) > self._max_bytes:
                self._rotate()
            os.write(self._fd, data)
        except OSError:
            pass

    def fileno(self) -> int:
        """Its descriptor; the same number for ever."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open_or_none(self) -> int:
        """The file, else what swallows everything."""
        try:
            self._make_directories()
            fd = self._open()
        except OSError:
            self._is_away = True
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._is_away = False
        return fd

    def _make_directories(self) -> None:
        # no more than the log root and its one directory: a state directory that is gone must be seen to be gone
        for directory in (self._path.parent.parent, self._path.parent):
            directory.mkdir(mode=0o700, exist_ok=True)

    def _find_again(self) -> None:
        now = self._clock.now()
        if self._is_away and now < self._look_at:
            return
        self._look_at = now + RETRY_S
        self._replace(self._open_or_none())

    def _replace(self, successor: int) -> None:
        # under the same number: others write to it as well
        os.dup2(successor, self._fd, inheritable=False)
        os.close(successor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _rotate(self) -> None:
        # whoever comes second finds another file under the name and only opens it
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        if self._is_in_place(os.fstat(self._fd)):
            for number in range(self._backups - 1, 0, -1):
                backup = Path(f"{self._path}.{number}")
                if backup.exists():
                    backup.replace(f"{self._path}.{number + 1}")
            self._path.replace(f"{self._path}.1")
        self._replace(self._open())

    def _is_in_place(self, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(status, os.stat(self._path))
        except OSError:
            return False


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


class LineFormatter(logging.Formatter):
    """Lines as the module says; with `is_json` JSON objects with the same fields."""

    def __init__(
        self,
        component: str,
        component_id: str,
        request_fields: RequestFields | None,
    ) -> None:
        super().__init__()
        self._component = component
        self._component_id = component_id
        self._request_fields = request_fields
        self.is_json = False

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record, its traceback on the lines after it."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        request = self._request_fields() if self._request_fields else ("", "", "")
        place = f"{record.filename}:{record.lineno}"
        if self.is_json:
            return self._json(record, message, request)
        known = on_one_line(" ".join(filter(None, (self._component, self._component_id, *request))))
        return f"{record.levelname} {self.formatTime(record)} {known} {place} - {message}"

    def formatException(self, ei: Any) -> str:
        """The whole traceback; whatever the exception's class does, the line is written."""
        return "".join(report_of(ei[1]).format()).rstrip() if ei[1] is not None else ""

    def _json(self, record: logging.LogRecord, message: str, request: tuple[str, str, str]) -> str:
        fields = {
            "levelname": record.levelname,
            "asctime": self.formatTime(record),
            "component_name": self._component,
            "component_id": self._component_id,
            "request_id": request[0],
            "route": request[1],
            "application": request[2],
            "filename": record.filename,
            "lineno": record.lineno,
            "message": message,
        }
        return json.dumps({key: value for key, value in fields.items() if value != ""})
