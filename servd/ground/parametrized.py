"""Classes that type checkers know as generic: at run time `Class[X]` only keeps the X, and instances know nothing of it."""

import types
import typing
from typing import TYPE_CHECKING, Any

__all__ = ["Answer", "Parameters", "Parametrized", "Served"]

if TYPE_CHECKING:
    from typing import Generic as Parametrized

    from typing_extensions import ParamSpec, TypeVar

    Answer = TypeVar("Answer", default=Any, covariant=True)
    """What a call gives."""

    Served = TypeVar("Served", default=Any, covariant=True)
    """A class whose instances serve."""

    Parameters = ParamSpec("Parameters", default=...)
    """Of a constructor or a method."""
else:
    Answer, Served = typing.TypeVar("Answer"), typing.TypeVar("Served")
    Parameters = typing.ParamSpec("Parameters")

    class Parametrized:
        """In the place of `typing.Generic`, which would have each class and each call of it pay for what is checked only."""

        __slots__ = ()

        def __class_getitem__(cls, parameters: Any) -> types.GenericAlias:
            return types.GenericAlias(cls, parameters)
