"""The verbs: make deployments, run and stop applications, get handles to them."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack, overload

from servd.application import Deployment, DeploymentArguments, make_deployment
from servd.built_application import BuiltApplication, build_application
from servd.exceptions import ServdError
from servd.handle import DeploymentHandle
from servd.ids import DeploymentID

if TYPE_CHECKING:
    from servd.client import Client


@overload
def deployment(_func_or_class: Callable[..., Any]) -> Deployment: ...
@overload
def deployment(
    _func_or_class: None = None, **options: Unpack[DeploymentArguments]
) -> Callable[[Callable[..., Any]], Deployment]: ...
def deployment(
    _func_or_class: Callable[..., Any] | None = None, **options: Unpack[DeploymentArguments]
) -> Deployment | Callable[[Callable[..., Any]], Deployment]:
    """Make a class or a function a deployment; bare or with options.

    Raises:
        TypeError: no class or function, an unknown option, an option of a wrong type.
        ValueError: an option out of its bounds.
    """
    if _func_or_class is not None:
        return make_deployment(_func_or_class, options)

    def decorate(target: Callable[..., Any]) -> Deployment:
        return make_deployment(target, options)

    return decorate
