"""Exceptions that do not let themselves be described, pickled or unpickled."""

import sys
from typing import Any


class AsksBack(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Recurses(Exception):
    def __getattr__(self, name: str) -> Any:
        return getattr(self, name + "_")


class HidesAll(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)


class NoText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class WrongText(Exception):
    def __str__(self) -> Any:
        return 5

    __repr__ = __str__


class LeavesWhenShown(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class NoArguments(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise AttributeError("no args")


class LeavesWhenPickled(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class LeavesWhenUnpickled(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class Refuses(Exception):
    """As frozen dataclasses do."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class HidesItsCause(Exception):
    @property
    def __cause__(self) -> Any:
        raise LookupError


class HasNoTruth(Exception):
    def __bool__(self) -> bool:
        raise ValueError("no truth")


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise LookupError(name)
        return super().__getattribute__(name)


class OfNoName(Exception, metaclass=Nameless):
    pass


class OfNoClass(Exception):
    @property
    def __class__(self) -> Any:
        raise LookupError


KINDS: tuple[type[Exception], ...] = (
    AsksBack,
    Recurses,
    HidesAll,
    NoText,
    WrongText,
    LeavesWhenShown,
    NoArguments,
    LeavesWhenPickled,
    LeavesWhenUnpickled,
    Refuses,
    HidesItsCause,
    HasNoTruth,
    OfNoName,
    OfNoClass,
)
PLACES = ("itself", "cause", "context", "group")


def raise_odd(kind: type[Exception], place: str) -> None:
    """Raise an odd error, or a harmless one that has it as its cause, its context or a member."""
    if place == "itself":
        raise kind("odd")
    if place == "group":
        raise ExceptionGroup("harmless", [kind("odd")])
    try:
        raise kind("odd")
    except Exception as error:
        if place == "cause":
            raise ValueError("harmless") from error
        raise ValueError("harmless")  # noqa: B904 - the context is the point
