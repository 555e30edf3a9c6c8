"""Tracebacks as users want to read them: their own frames only. Standard library only."""

import logging
import os
import sysconfig
import traceback
from collections.abc import Iterator, Mapping

from servd.ground.package import PACKAGE_DIR
from servd.observability.described import members_of, message_of, report_of, slot
from servd.observability.hints import hint_for

_OWN = PACKAGE_DIR + os.sep
_STDLIB = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
_SITE = ("site-packages" + os.sep, "dist-packages" + os.sep)
_NOISE = ("<frozen importlib", "<frozen runpy", os.path.join(_STDLIB, "importlib"))
_MACHINERY = ("asyncio", "concurrent", "importlib", "multiprocessing", "contextvars.py", "runpy.py", "threading.py")
_FRAMEWORKS = ("starlette", "fastapi", "anyio", "uvloop")
_FRAME = '  File "'
_MOST_MEMBERS = 100
_HEAD = "Traceback (most recent call last):\n"

_origins: dict[str, str] = {}
"""Directory that this process runs code from -> the user's directory that it is a copy of."""


def show_as(origins: Mapping[str, str]) -> None:
    """From now on show paths below these directories as paths below those of the user's that they are copies of."""
    _origins.clear()
    _origins.update(origins)


def users_paths(text: str) -> str:
    """The text with the paths that the user knows."""
    for copy, origin in _origins.items():
        text = text.replace(copy, origin)
    return text


def texts_of(record: logging.LogRecord) -> Iterator[str]:
    """What a log record says: its message, traceback and stack, as far as it has them. Never raises.

    Paths as in `user_traceback` where the interpreter has written them, in printed tracebacks too.
    """
    message = message_of(record)
    yield users_paths(message) if record.name == "py.warnings" or _FRAME in message else message
    if record.exc_info and record.exc_info[1] is not None:
        yield users_paths("".join(report_of(record.exc_info[1]).format()).rstrip())
    # one that has come through a queue has only the text of its exception
    elif record.exc_text:
        yield users_paths(record.exc_text)
    if record.stack_info:
        yield users_paths(record.stack_info)


def user_traceback(error: BaseException) -> str:
    """The traceback of an exception as text, causes included, shortened to the user's frames.

    Frames of servd and of the import system are left out, and those of the asynchronous machinery and the web
    framework too, except below a frame of the user's (there they tell what the user's call ran into). No
    newline at the end. Paths are those of the user's own files, see `show_as`. Never raises.
    """
    report = report_of(error)
    for item in _chain(report):
        item.stack = traceback.StackSummary.from_list(_shortened(list(item.stack)))
    text = "".join(report.format()).rstrip()
    if text.startswith("  File "):
        # of a SyntaxError the frames say nothing; its own place would follow whatever is written before
        text = _HEAD + text
    hint = hint_for(error, _folder())
    return _storable(users_paths(f"{text}\n{hint}" if hint else text))


def users_place(error: BaseException) -> str:
    """Where in the user's code an exception was raised, `file:line in function`; else in a package. "" without such a frame.

    Of a group that other code has put together, where the first of its members was that the user's code raised. Paths as in
    `user_traceback`. Never raises.
    """
    waiting, seen, other = [error], 0, ""
    while waiting and seen < _MOST_MEMBERS:
        one, seen = waiting.pop(), seen + 1
        found, place = _places(one)
        if found:
            return _storable(users_paths(found))
        other = other or place
        waiting += reversed(members_of(one))
    return _storable(users_paths(other))


def _places(error: BaseException) -> tuple[str, str]:
    """Of the last frames of the user's and of a package; "" without one."""
    found = other = ""
    trace = slot(error, "__traceback__")
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename}:{trace.tb_lineno} in {code.co_qualname}"
        if is_users(code.co_filename):
            found = place
        elif not is_runtime(code.co_filename) and not _is_machinery(code.co_filename):
            other = place
        trace = trace.tb_next
    return found, other


def _storable(text: str) -> str:
    """The text with lone surrogates (names of files that are no UTF-8) as escapes: it travels and is stored as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "a folder that is gone"


def _chain(report: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting: list[traceback.TracebackException | None] = [report]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        waiting += [item.__cause__, item.__context__, *(item.exceptions or ())]


def _shortened(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    kept = [frame for frame in frames if not frame.filename.startswith((_OWN, *_NOISE))]
    first = next((i for i, frame in enumerate(kept) if not _is_machinery(frame.filename)), None)
    return kept if first is None else kept[first:]


def is_users(filename: str) -> bool:
    """Whether this is a file of the user's: neither servd's, nor the interpreter's, nor of an installed package."""
    return not (_is_installed(filename) or is_runtime(filename))


def is_runtime(filename: str) -> bool:
    """Whether this is a file of servd's or of the interpreter's."""
    return filename.startswith((_OWN, _STDLIB, "<frozen")) and not _is_installed(filename.removeprefix(_OWN))


def _is_installed(filename: str) -> bool:
    return any(os.sep + site in filename for site in _SITE)


def _is_machinery(filename: str) -> bool:
    """Whether this is a file of the layers between servd and user code."""
    if filename.startswith(_STDLIB):
        rest = filename[len(_STDLIB) :]
        if not rest.startswith(_SITE):
            return rest.startswith(_MACHINERY)
    for site in _SITE:
        _, found, package = filename.partition(os.sep + site)
        if found:
            return package.startswith(tuple(name + os.sep for name in _FRAMEWORKS))
    return False
