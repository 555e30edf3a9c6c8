"""Words for exceptions and what is logged, whatever their classes do when asked: nothing here raises. Standard library only.

How this works: Python's own report is tried first. It asks the exception for attributes and texts, and so runs code of the
user's, which may raise or recurse. Then a stand-in is reported: an exception of a class of the same name without any code, with
the same frames and causes.
"""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST_MESSAGE = 64 * 1024
"""Characters of one message; what is left out of a longer one is said."""
_FIELDS_IN_ONE = "ray_serve_extra_fields"
ACCESS_MARK = "serve_access_log"
_ATTRIBUTES = logging.makeLogRecord({}).__dict__.keys() | {"asctime", "message", "taskName", ACCESS_MARK}
"""What each record has, and the extra by which application code marks one as an access line."""
NO_TEXT = "<exception str() failed>"
"""As the interpreter says it."""

_LONGEST_CHAIN = 100


def text_of(error: object) -> str:
    """`str(error)` of an exception or whatever else, or a text that says that there is none."""
    try:
        return str(str(error))
    except BaseException:
        return NO_TEXT


def summary_of(error: BaseException) -> str:
    """Class and text, as the last lines of a traceback have them."""
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except BaseException:
        name, text = full_name_of(type(error)), text_of(error)
        return f"{name}: {text}" if text else name


def for_future(error: BaseException) -> BaseException:
    """The error, or one that tells of it, for what a future cannot carry to whoever waits.

    It refuses StopIteration. A task that is cancelled in the moment of its result asks the error for its class, and never ends
    if that raises.
    """
    try:
        # asks an object of another type for its class
        if not isinstance(error, StopIteration):
            return error
    except BaseException:
        pass
    told = RuntimeError(f"user code raised {summary_of(error)}")
    told.__cause__ = error
    return told


def name_of(kind: type) -> str:
    """Qualified name of a class, past any code of its metaclass."""
    return str(vars(type)["__qualname__"].__get__(kind))


def full_name_of(kind: type) -> str:
    """Module and qualified name of a class, as tracebacks have them."""
    module = _module_of(kind)
    return name_of(kind) if module in ("builtins", "__main__") else f"{module}.{name_of(kind)}"


def _module_of(kind: type) -> str:
    module = vars(type)["__module__"].__get__(kind)
    return module if type(module) is str else "<unknown>"


def report_of(error: BaseException) -> traceback.TracebackException:
    """What a traceback is written from, causes included."""
    try:
        report = traceback.TracebackException.from_exception(error)
        # the texts are asked for when it is written
        "".join(report.format())
        return report
    except BaseException:
        return traceback.TracebackException.from_exception(_stand_in(error))


def _stand_in(error: BaseException) -> BaseException:
    made: dict[int, tuple[BaseException, BaseException]] = {}
    waiting = [error]
    while waiting and len(made) < _LONGEST_CHAIN:
        one = waiting.pop()
        if id(one) not in made:
            made[id(one)] = one, _bare(one)
            others = (slot(one, "__cause__"), slot(one, "__context__"), *members_of(one))
            # not for their truth, which is the user's code too
            waiting += [other for other in others if other is not None]
    for one, bare in made.values():
        for name in ("__cause__", "__context__"):
            _, other = made.get(id(slot(one, name)), (None, None))
            setattr(bare, name, other)
        bare.__suppress_context__ = slot(one, "__suppress_context__")
        bare.__traceback__ = slot(one, "__traceback__")
        if members := [made[id(member)][1] for member in members_of(one) if id(member) in made]:
            type(bare).exceptions = members  # type: ignore[attr-defined]
    return made[id(error)][1]


def slot(error: BaseException, name: str) -> Any:
    """What the interpreter keeps in an exception as `__cause__` and the like, past any code of its class."""
    return vars(BaseException)[name].__get__(error)


def members_of(error: BaseException) -> Any:
    """The exceptions that a group holds, past any code of its class; () of one that is no group."""
    if not issubclass(type(error), BaseExceptionGroup):
        return ()
    return vars(BaseExceptionGroup)["exceptions"].__get__(error)


def _bare(error: BaseException) -> BaseException:
    kind, text = type(error), text_of(error)
    is_group = issubclass(kind, BaseExceptionGroup)
    bare: Any = type("Bare", (ExceptionGroup if is_group else Exception,), {"__str__": lambda _: text})
    bare.__module__, bare.__qualname__ = _module_of(kind), name_of(kind)
    # a group must have a member; its own take the place of this one
    made: BaseException = bare("", [Exception()]) if is_group else bare()
    return made


def extras_of(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """What was logged as `extra`; what Ray Serve's name for fields holds, as fields of their own."""
    for name, value in record.__dict__.items():
        if name in _ATTRIBUTES:
            continue
        if name == _FIELDS_IN_ONE and isinstance(value, Mapping):
            yield from ((str(key), one) for key, one in value.items())
        else:
            yield name, value


def in_json(value: Any) -> Any:
    """The value in terms of JSON; as bounded text where it has none, or long ones, or its code raises."""
    try:
        text = json.dumps(value, default=str)
        if len(text) <= LONGEST_MESSAGE:
            return json.loads(text)
    except BaseException:
        pass
    return bounded(text_of(value))


def message_of(record: logging.LogRecord) -> str:
    """What was logged; where its arguments do not fit or have no text, what they were to be put into and why that failed."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"{text_of(record.msg)} [arguments not shown: {summary_of(error)}]"


def bounded(text: str) -> str:
    """The text, cut where it is too long."""
    left_out = len(text) - LONGEST_MESSAGE
    return text if left_out <= 0 else f"{text[:LONGEST_MESSAGE]} [{left_out} characters left out]"
