"""What type checkers know of `deployment`: a class keeps its constructor's parameters for `bind`, a function has none."""

from collections.abc import Callable
from types import CodeType
from typing import Any, Protocol, overload

from servd.app.deployment import Deployment
from servd.ground.parametrized import Parameters, Served


class DeployedFunction(Protocol):
    """A function: what no class has."""

    @property
    def __code__(self) -> CodeType:
        """Its code."""


class DeploymentDecorator(Protocol):
    """`deployment` with options."""

    @overload
    def __call__(self, func_or_class: DeployedFunction, /) -> Deployment[..., Any]: ...
    @overload
    def __call__(  # type: ignore[overload-cannot-match]  # a class is called, but has no code
        self, func_or_class: Callable[Parameters, Served], /
    ) -> Deployment[Parameters, Served]: ...
