"""Modules that importing Ray Serve brings along, so that its applications name them after importing their packages alone.

`import starlette` and then `starlette.requests.Request`, say, as in Ray's own examples. Here they are loaded when they are named:
most applications name none.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

# as loaded after `from ray import serve`, release 2.60, and not by importing the package itself; of packages that cost nothing
COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "starlette": (
        "applications",
        "background",
        "concurrency",
        "convertors",
        "datastructures",
        "exceptions",
        "formparsers",
        "middleware",
        "middleware.base",
        "middleware.errors",
        "middleware.exceptions",
        "requests",
        "responses",
        "routing",
        "staticfiles",
        "status",
        "types",
        "websockets",
    ),
    "concurrent": ("futures", "futures.thread"),
    "email": ("encoders", "errors", "header", "message", "parser", "utils"),
    "http": ("client", "cookiejar", "cookies"),
    "importlib": ("abc", "machinery", "metadata", "resources", "util"),
    "logging": ("config", "handlers"),
    "multiprocessing": ("connection", "util"),
    "urllib": ("error", "parse", "request", "response"),
}


def offer_companions() -> None:
    """Let the modules in `COMPANIONS` be found as attributes of their packages."""
    for package, names in COMPANIONS.items():
        module = importlib.import_module(package)
        if "__getattr__" not in vars(module):
            vars(module)["__getattr__"] = finder_of(package, names)


def finder_of(package: str, names: tuple[str, ...]) -> Callable[[str], Any]:
    """A `__getattr__` for a package: loads one of its modules, and what is named below that."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        for below in names:
            if below.startswith(f"{name}."):
                importlib.import_module(f"{package}.{below}")
        return importlib.import_module(f"{package}.{name}")

    return find
