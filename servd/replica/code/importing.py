"""From an import path, or a shipped file, to a built application; and the version of its code."""

import hashlib
import importlib
import inspect
import json
import os
import sys
import sysconfig
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from servd.app.built import BuiltApplication, build_application
from servd.app.deployment import Application, Deployment
from servd.app.grpc_servicers import codecs_of
from servd.calls import pickling
from servd.compat import ray_names
from servd.dag import HandleMaker
from servd.documents import runtime_env
from servd.exceptions import DeployError
from servd.ground.package import PACKAGE_DIR
from servd.observability.tracebacks import user_traceback, users_paths
from servd.replica.code.environment import Environment
from servd.replica.code.working_copy import copies_of
from servd.wire.build_messages import BuildOrder

_PATCHERS = {"gevent": ("gevent.monkey", "saved"), "eventlet": ("eventlet.patcher", "already_patched")}
"""Library that puts its own in the place of Python's threads, sockets and the like -> module that knows what it has replaced."""
_SITE_PARTS = {"site-packages", "dist-packages"}


def load_application(order: BuildOrder, environment: Environment) -> BuiltApplication:
    """Import what the order names, call it if it is a builder, flatten the graph.

    Args:
        environment: what `apply_environment` applied; its directories are named where a module is not found.

    Raises:
        DeployError: the text is for the application's message: the traceback shortened to the user's frames.
    """
    # now, because real Ray may be among the packages of this environment
    ray_names.install()
    try:
        if order.application_file:
            target = pickling.load_application(_read_shipped(order.application_file))
        else:
            target = import_target(order.import_path)
        built = build_application(as_application(target, order.args), order.app, HandleMaker())
        built.grpc = codecs_of((path, import_target(path)) for path in order.grpc_servicers)
        _check_patches()
        return built
    except DeployError:
        raise
    # whatever user code raises while it is imported or built, `sys.exit()` included, is the user's news
    except BaseException as error:
        raise DeployError(user_traceback(error) + users_paths(_search_hint(error, environment))) from error


def _check_patches() -> None:
    for library, (module, names) in _PATCHERS.items():
        patched = sorted(name for name in getattr(sys.modules.get(module), names, ()) if name[0] != "_")
        if patched:
            raise DeployError(
                f"the import has let {library} patch Python's {', '.join(patched)}: a replica cannot run then, its event "
                "loop and its threads need real ones. Leave that call out: `async def` handlers wait in asyncio, `def` "
                "handlers run in threads."
            )


def _read_shipped(path: str) -> bytes:
    """The shipped application, checked against the sum that it was uploaded under: nothing else is ever unpickled."""
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != Path(path).stem:
        raise DeployError(f"the shipped application {path} is damaged: run it again")
    return data


def import_target(import_path: str) -> Any:
    """The object behind `module:attribute` or `module.attribute`.

    Raises:
        ValueError: no such form.
        AttributeError: the module has no such attribute; the text names the module's file.
        Exception: whatever the import raises.
    """
    separator = ":" if ":" in import_path else "."
    module_name, found, attribute = import_path.rpartition(separator)
    if not found or not module_name or not attribute:
        raise ValueError(f'import path {import_path!r} must have the form "module:attribute" or "module.attribute"')
    target: Any = importlib.import_module(module_name)
    for name in attribute.split("."):
        if not hasattr(target, name):
            raise AttributeError(
                f"{_described(target)} has no attribute {name!r} (import path {import_path!r}); {_applications_in(target)}"
            )
        target = getattr(target, name)
    return target


def as_application(target: Any, args: Mapping[str, Any]) -> Application:
    """The application that `target` is, or that it builds.

    Args:
        target: an application, or a plain function with exactly one parameter. If that is annotated with a
            pydantic model, the arguments are parsed into it; otherwise it gets a dict.
        args: arguments of the builder; must be empty for an application.

    Raises:
        ValueError: arguments for an application that is built already.
        TypeError: `target` or what it returns is no application, or it has not one parameter.

    Source: Ray Serve 2.5, call_app_builder_with_args_if_necessary.
    """
    if isinstance(target, Application):
        if args:
            raise ValueError("arguments were given, but the import path names an application that is built already")
        return target
    if not inspect.isfunction(target):
        bind = "; call its `.bind(...)`" if isinstance(target, Deployment) else ""
        raise TypeError(
            f"expected an application or a builder function, got {target!r} ({type(target).__name__}){bind}"
        )
    parameters = list(inspect.signature(target).parameters)
    if len(parameters) != 1:
        raise TypeError(
            f"a builder function takes exactly one parameter, {target.__qualname__} takes {len(parameters)}"
        )
    built = target(_builder_argument(target, parameters[0], args))
    if not isinstance(built, Application):
        raise TypeError(
            f"the builder function {target.__qualname__} must return an application, it returned {type(built).__name__}"
        )
    return built


def code_version(order: BuildOrder, environment: Environment) -> str:
    """Version of the code that was just imported: equal exactly when nothing that matters changed.

    Returns:
        SHA-256, hexadecimal, over the import path (or the shipped file), the arguments, the runtime
        environment, the servicers of gRPC, and the content of the modules from outside the standard library,
        site-packages, archives (their URI stands for them) and servd.
    """
    digest = hashlib.sha256()
    head = [order.import_path, order.args, runtime_env.fingerprint(order.runtime_env)]
    head += [order.grpc_servicers] if order.grpc_servicers else []
    digest.update(json.dumps(head, sort_keys=True, default=str).encode())
    if order.application_file:
        digest.update(_file_digest(order.application_file))
    for name, path in user_modules(environment.archives):
        digest.update(f"\0{name}\0".encode())
        digest.update(_file_digest(path))
    return digest.hexdigest()


def is_pinned(order: BuildOrder, environment: Environment) -> bool:
    """Whether every imported module of the user's comes from a snapshot or an archive: the same runtime environment then means
    the same code."""
    copies = os.path.realpath(copies_of(order)) + os.sep
    return all(path.startswith(copies) for _, path in user_modules(environment.archives))


def user_modules(archives: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Name and file of every imported module that is the user's own, sorted."""
    # Debian's `sitecustomize` is a link there to a file in /etc
    libraries = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
    ignored = tuple(os.path.realpath(path) + os.sep for path in (PACKAGE_DIR, *libraries, *archives))
    found = set()
    for name, path in _module_files():
        real = os.path.realpath(path)
        if (
            not path.startswith(libraries)
            and not real.startswith(ignored)
            and not _SITE_PARTS.intersection(real.split(os.sep))
        ):
            found.add((name, real))
    return sorted(found)


def _module_files() -> Iterator[tuple[str, str]]:
    for name, module in list(sys.modules.items()):
        # anybody may put anything there
        path = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
        if isinstance(path, str) and os.path.isfile(path) and name not in ("__main__", "__mp_main__"):
            yield name, path


def _file_digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _builder_argument(function: Any, parameter: str, args: Mapping[str, Any]) -> Any:
    try:
        annotation = typing.get_type_hints(function).get(parameter)
    except Exception:
        # an annotation that cannot be evaluated is none
        annotation = None
    if inspect.isclass(annotation):
        # pydantic is known by its methods: 2.x has the first, 1.x the second
        for parse in ("model_validate", "parse_obj"):
            if hasattr(annotation, parse):
                return getattr(annotation, parse)(dict(args))
    return dict(args)


def _applications_in(target: Any) -> str:
    # anybody may put anything there
    found = (
        [name for name, value in vars(target).items() if type(value) is Application]
        if hasattr(target, "__dict__")
        else []
    )
    if found:
        return f"applications in it: {', '.join(sorted(found))}"
    return "no application is in it: make one with `.bind(...)` of a deployment"


def _described(target: Any) -> str:
    if isinstance(target, ModuleType):
        return f"module {target.__name__!r} ({getattr(target, '__file__', None) or 'namespace package'})"
    return repr(target)


def _search_hint(error: BaseException, environment: Environment) -> str:
    if not issubclass(type(error), ImportError):
        return ""
    return (
        f"\nSearched for modules in: {', '.join(environment.search_path) or 'no directory of yours'}; then among "
        "the installed packages.\nTo add a directory, name it as working_dir in the application's runtime_env."
    )
