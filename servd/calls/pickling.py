"""Python values to bytes and back: arguments and results of calls, exceptions, applications by value."""

import importlib
import io
import linecache
import os
import pickle
import sys
import threading
from collections import ChainMap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cloudpickle

from servd.calls.moved_modules import MOVED, home_of
from servd.exceptions import DeployError, UserCodeError
from servd.observability.described import name_of, summary_of, text_of
from servd.observability.tracebacks import user_traceback

OUT_OF_BAND_BYTES = 64 * 1024
"""Buffers from this size on stay outside the pickle, so they are not copied into it."""

_PROTOCOL = 5
_APPLICATION_MAGIC = b"servd application, python "
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_MAIN = b"__main__"
_MOST_SOURCE_CHARACTERS = 1_000_000


def dumps(value: Any) -> list[Any]:
    """Parts that hold `value`: the pickle first, then its large buffers in order.

    Buffers that could change before they are sent are copied, read-only ones are views of the value's own memory.

    Raises:
        TypeError: `value` cannot be pickled; the text names its type and the reason.
    """
    buffers: list[Any] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(view if view.readonly else bytes(view))
        return False

    try:
        data = _pickle(value, keep, buffers)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise TypeError(f"cannot send {name_of(type(value))} to another process: {text_of(error)}") from error
    return [data, *buffers]


def loads(parts: list[Any]) -> Any:
    """The value behind the parts of `dumps`. Arrays with a buffer of their own are as writable as it is.

    Raises:
        Exception: what unpickling raises. UserCodeError: it wanted to leave the interpreter.
    """
    try:
        if len(parts) == 1:
            return pickle.loads(parts[0])
        return pickle.loads(parts[0], buffers=parts[1:])
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserCodeError(f"a value of the call could not be unpickled: {summary_of(error)}") from error


def dump_exception(error: BaseException) -> list[Any]:
    """Parts that hold an exception and its traceback as text. Never raises."""
    return [pickle.dumps((summary_of(error), user_traceback(error), _exception_bytes(error)), _PROTOCOL)]


def load_exception(parts: list[Any]) -> Exception:
    """The exception behind the parts of `dump_exception`, to be raised here.

    Returns:
        An instance of the original class whose `__cause__` is a `UserCodeError` with the remote traceback;
        that `UserCodeError` itself when the original cannot be rebuilt in this process.
    """
    try:
        summary, text, data = pickle.loads(parts[0])
    except Exception as error:
        return UserCodeError(f"an error that cannot be read: {summary_of(error)}")
    remote = UserCodeError(summary, text)
    if data is None:
        return remote
    try:
        rebuilt = _rebuild(data)
    # code of the user's, which may end the interpreter too
    except BaseException:
        return remote
    # past code of the user's: frozen classes refuse every attribute
    vars(BaseException)["__cause__"].__set__(rebuilt, remote)
    return rebuilt


def _framework_reducers() -> dict[Any, Any]:
    """How to ship what frameworks keep in their application objects and cannot pickle themselves."""
    # locks guard caches; at the other end nobody holds them
    reducers: dict[Any, Any] = {
        type(threading.Lock()): lambda _: (threading.Lock, ()),
        type(threading.RLock()): lambda _: (threading.RLock, ()),
    }
    if datastructures := sys.modules.get("starlette.datastructures"):
        state = datastructures.State
        reducers[state] = lambda value: (state, (value._state,))
    return reducers


def dump_application(application: Any) -> bytes:
    """An application by value, readable by the same minor version of Python. Two calls never give the same bytes.

    Raises:
        TypeError: something in it cannot be pickled; the text says what.
    """
    buffer = io.BytesIO()
    try:
        # the table is read when the pickler is made, so it must be the class's
        table = ChainMap(_framework_reducers(), cloudpickle.Pickler.dispatch_table)
        kind = type("ApplicationPickler", (cloudpickle.Pickler,), {"dispatch_table": table})
        kind(buffer, _PROTOCOL).dump(application)
        pickle.dump(_lines_without_file(), buffer, _PROTOCOL)
    except Exception as error:
        raise TypeError(f"cannot ship the application to the daemon: {text_of(error)}") from error
    # what `run` ships has no version: shipped again, it is new code, so it must have another hash
    nonce = os.urandom(8).hex()
    return _APPLICATION_MAGIC + f"{_PYTHON} {nonce}\n".encode() + buffer.getvalue()


def load_application(data: bytes) -> Any:
    """The application behind `dump_application`.

    Raises:
        DeployError: no such bytes, or another minor version of Python wrote them; both are named.
    """
    head, _, body = data.partition(b"\n")
    if not head.startswith(_APPLICATION_MAGIC):
        raise DeployError("the shipped application is damaged: it does not start as one")
    written = head[len(_APPLICATION_MAGIC) :].decode(errors="replace").partition(" ")[0]
    if written != _PYTHON:
        raise DeployError(
            f"the application was shipped from Python {written}, the daemon runs Python {_PYTHON}: "
            "use the same version on both sides"
        )
    stream = io.BytesIO(body)
    application = _ApplicationReader(stream).load()
    if stream.tell() < len(body):
        # what earlier versions shipped ends here
        _remember_lines(pickle.load(stream))
    return application


def _lines_without_file() -> dict[str, list[str]]:
    """Source lines of code that no file holds, as of notebooks and consoles: tracebacks in replicas show them."""
    found = {name: entry[2] for name, entry in linecache.cache.items() if len(entry) == 4 and not os.path.exists(name)}
    kept: dict[str, list[str]] = {}
    room = _MOST_SOURCE_CHARACTERS
    # the newest first
    for name, lines in reversed(found.items()):
        room -= sum(map(len, lines))
        if room < 0:
            break
        kept[name] = list(lines)
    return kept


def _remember_lines(sources: dict[str, list[str]]) -> None:
    for name, lines in sources.items():
        # without a time of change they stay
        linecache.cache[name] = sum(map(len, lines)), None, lines, name


class _ApplicationReader(pickle.Unpickler):
    """Finds what earlier versions pickled under other names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("cloudpickle.cloudpickle", "subimport"):
            return _module_named
        return super().find_class(*home_of(module, name))


def _module_named(name: str) -> ModuleType:
    """A module that shipped code refers to as a whole."""
    return importlib.import_module(MOVED.get(name, name))


def _pickle(value: Any, keep: Callable[[pickle.PickleBuffer], bool] | None, kept: list[Any] | None = None) -> bytes:
    try:
        data = pickle.dumps(value, _PROTOCOL, buffer_callback=keep)
        # what a script defines in __main__ cannot be imported by other processes: ship it by value
        if _MAIN not in data:
            return data
    except Exception:
        pass
    if kept is not None:
        kept.clear()
    shipped: bytes = cloudpickle.dumps(value, _PROTOCOL, buffer_callback=keep)
    return shipped


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def with_replaced(value: Any, kind: type[Any], replace: Callable[[Any], Any]) -> Any:
    """A copy of `value` with `replace(item)` for each `kind` that is anywhere inside it; `value` itself where none is.

    The way through objects is pickle's. What holds nothing but data, as arrays do, is not looked into.

    Raises:
        TypeError: there are such items, but `value` cannot be pickled, so no copy can be made.
    """
    scout = _scout_of(kind)
    try:
        # the buffers of what holds some stay where they are
        scout(_Nowhere(), _PROTOCOL, buffer_callback=lambda _: None).dump(value)
    except KeyboardInterrupt:
        raise
    # code of the user's, which may end the interpreter too
    except BaseException as error:
        if scout.found:
            raise TypeError(f"cannot copy {name_of(type(value))}: {text_of(error)}") from error
    if not scout.found:
        return value
    found: list[Any] = []

    class _Writer(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, item: Any) -> int | None:
            if not issubclass(type(item), kind):
                return None
            found.append(replace(item))
            return len(found) - 1

    class _Reader(pickle.Unpickler):
        def persistent_load(self, index: Any) -> Any:
            return found[index]

    data = io.BytesIO()
    _Writer(data, _PROTOCOL).dump(value)
    data.seek(0)
    return _Reader(data).load()


def _scout_of(kind: type[Any]) -> Any:
    """A pickler class that notes in `found` whether it met one of `kind`."""

    class _Scout(cloudpickle.Pickler):  # type: ignore[misc]
        found = False

        def persistent_id(self, item: Any) -> int | None:
            if issubclass(type(item), kind):
                _Scout.found = True
                return 0
            # gigabytes of weights, say: to write them anywhere takes its time
            return 0 if hasattr(type(item), "__array__") else None

    return _Scout


def _exception_bytes(error: BaseException) -> bytes | None:
    """Bytes of which `_rebuild` makes an equal exception, None when nothing can."""
    # a future refuses StopIteration, and exits belong to the process that wanted them
    kind = type(error)
    if not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
        return None
    for form in (lambda: error, lambda: (kind, error.args, dict(error.__dict__))):
        try:
            data = _pickle(form(), None)
            if type(_rebuild(data)) is kind:
                return data
        # code of the user's, which may end the interpreter too
        except BaseException:
            continue
    return None


def _rebuild(data: bytes) -> Exception:
    thing = pickle.loads(data)
    if isinstance(thing, Exception):
        return thing
    # the constructor wants something else than `args`: make the instance without it
    kind, args, state = thing
    rebuilt: Exception = kind.__new__(kind, *args)
    vars(BaseException)["args"].__set__(rebuilt, args)
    rebuilt.__dict__.update(state)
    return rebuilt
