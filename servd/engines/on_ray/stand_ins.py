"""What servd's own package needs on a Ray cluster in place of what its installation brings. Standard library and Ray.

Nothing there opens a socket of servd's, so what would is replaced by names that refuse to be used.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, NoReturn

_NOT_THERE = ("servd.wire.sockets", "servd.wire.link", "servd.wire.caller_link", "setproctitle", "psutil", "uvloop")
_VERBS = {
    "run": "deploy a document: `servd deploy --engine ray`",
    "start": "deploy a document: `servd deploy --engine ray`",
    "delete": "`servd delete --engine ray`",
    "shutdown": "`servd shutdown --engine ray`",
    "shutdown_async": "`servd shutdown --engine ray`",
    "status": "`ray.serve.status()`",
    "get_deployment": "`servd.get_deployment_handle(NAME, APP)`",
    "list_deployments": "`ray.serve.status()`",
}


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (_Refused,), {"__module__": self.__name__})
        setattr(self, name, found)
        return found


class _Refused:
    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise NotImplementedError(f"{type(self).__module__}.{type(self).__name__}: the cluster has its own")


def install() -> None:
    """Before anything else of the package is imported, and before the application is; once is enough."""
    if "cloudpickle" not in sys.modules:
        sys.modules["cloudpickle"] = importlib.import_module("ray.cloudpickle")
    for name in _NOT_THERE:
        sys.modules.setdefault(name, _Absent(name))
    # one that nobody scrapes would count in vain
    sys.modules["servd.metrics"] = importlib.import_module("ray.serve.metrics")
    api = importlib.import_module("servd.api")
    package = importlib.import_module("servd")
    for name, instead in _VERBS.items():
        refused = _refusal(name, instead)
        setattr(api, name, refused)
        setattr(package, name, refused)
    for name in ("get_app_handle", "get_deployment_handle"):
        found = getattr(importlib.import_module("servd.engines.on_ray.calls"), name)
        setattr(api, name, found)
        setattr(package, name, found)


def _refusal(name: str, instead: str) -> Any:
    def refused(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"servd.{name} has no meaning on a Ray cluster: use {instead}")

    refused.__name__ = name
    return refused
