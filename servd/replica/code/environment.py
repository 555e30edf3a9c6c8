"""Apply a runtime environment to this process: code directories, import path, current directory.

`env_vars` are not its business: they hold before the interpreter starts, so the one who starts the process
sets them.
"""

import importlib
import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from servd.documents import runtime_env
from servd.documents.runtime_env import pip_field
from servd.exceptions import DeployError
from servd.ground.clock import Clock, SystemClock
from servd.ground.package import PACKAGE_DIR
from servd.ground.quick_dataclass import dataclass
from servd.observability import tracebacks
from servd.replica.code.code_cache import unpacked_archive
from servd.replica.code.packages import VirtualEnvironment, own_requirements, virtual_environment
from servd.replica.code.working_copy import working_copy
from servd.wire.build_messages import BuildOrder

DEFAULT_SETUP_TIMEOUT_S = 600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Environment:
    """What was applied.

    search_path: the user's own directories on the import path, in order. archives: those of them, and their
    like, that came out of archives. cwd: current directory.
    """

    search_path: tuple[str, ...]
    cwd: str
    archives: tuple[str, ...] = ()


def apply_environment(
    order: BuildOrder, load: Callable[[], object] = lambda: None, clock: Clock | None = None
) -> Environment:
    """Fetch and unpack what the order's runtime environment names, then change `sys.path` and the current
    directory. Of stored code (snapshots, archives) a copy is used, which the application may write to.

    Args:
        load: imports the rest of servd. Called when the packages of `pip` come first, so libraries find there what they look
            for when they are imported; the user's own directories still come last, so that a file of a library's name does not
            take its place.

    Import path: `py_modules` (of a directory that is a package itself the one above it, where it is alone), then `working_dir`;
    without one the shipping driver's path, or the daemon's
    start directory and its PYTHONPATH; then the PYTHONPATH in `env_vars`, the `pip` packages' virtual
    environment, the interpreter's own directories.

    Raises:
        DeployError: something cannot be had; the text starts with "runtime_env setup failed".

    Source: runtime.md section 12.
    """
    tracebacks.show_as(order.origins)
    try:
        return _apply(order, load, clock or SystemClock())
    except DeployError as error:
        raise DeployError(f"runtime_env setup failed: {error}") from error


def _apply(order: BuildOrder, load: Callable[[], object], clock: Clock) -> Environment:
    env = order.runtime_env
    deadline = clock.now() + _setup_timeout_s(env)
    archives: list[str] = []
    unknown = runtime_env.unknown_keys(env)
    if unknown:
        logger.warning("runtime_env of application %r: %s has no effect here", order.app, ", ".join(unknown))

    def directory(field: str, uri: str) -> str:
        if not runtime_env.is_remote(uri) and os.path.isdir(runtime_env.local_path(uri)):
            return os.path.normpath(runtime_env.local_path(uri))
        if runtime_env.is_local_directory(uri):
            raise DeployError(f"{field}: there is no directory {runtime_env.local_path(uri)}")
        try:
            archives.append(unpacked_archive(uri, order.state_dir, deadline=deadline, clock=clock))
        except DeployError as error:
            raise DeployError(f"{field}: {error}") from error
        return archives[-1]

    modules = [directory("py_modules", uri) for uri in env.get("py_modules") or () if uri]
    stored = directory("working_dir", env["working_dir"]) if env.get("working_dir") else ""
    packages_of = {path: _package_name(path, order) for path in modules if path not in archives}
    copies = {path: working_copy(path, order, packages_of.get(path, "")) for path in modules}
    working_dir = working_copy(stored, order) if stored else ""
    places = [*copies.items(), *([(stored, working_dir)] if stored else [])]
    shown = {copy: order.origins[path] for path, copy in places if path in order.origins}
    tracebacks.show_as({**order.origins, **shown})
    # an application by value starts where its driver was: that is the first of the driver's directories
    cwd = working_dir or next(iter(order.driver_path), "") or order.start_dir or os.getcwd()
    extra = (env.get("env_vars") or {}).get("PYTHONPATH", "")
    written = _absolute(
        [
            *(os.path.dirname(copies[path]) if packages_of.get(path) else copies[path] for path in modules),
            *_home(order, working_dir),
            *extra.split(os.pathsep),
        ],
        cwd,
    )
    own = [path for path in written if not _is_interpreter_dir(path)]
    # a list that names paths means the stored directory, whatever copy of it is used: one environment serves all
    installed = virtual_environment(pip_field(env), order.state_dir, stored or cwd, deadline=deadline, clock=clock)
    packages = installed.activate() if installed is not None else []
    if installed is not None and (shadowed := installed.shadowed()):
        logger.warning(
            "runtime_env.pip of application %r has no effect on %s: servd has loaded its own already",
            order.app,
            ", ".join(shadowed),
        )
    daemon_path = _absolute([order.start_dir, *order.python_path.split(os.pathsep)], cwd)
    interpreter = interpreter_path(sys.path, daemon_path)
    sys.path[:] = import_path(packages, interpreter, own)
    importlib.invalidate_caches()
    _load(load, installed)
    try:
        os.chdir(cwd)
    except OSError as error:
        raise DeployError(f"cannot enter directory {cwd}: {error.strerror}") from error
    sys.path[:] = import_path(own, packages, interpreter)
    copied = dict(places)
    return Environment(tuple(own), cwd, tuple(copied[path] for path in archives))


def _package_name(directory: str, order: BuildOrder) -> str:
    """Name of the package that a directory of `py_modules` is; "" for one that holds modules."""
    name = os.path.basename(order.origins.get(directory, directory).rstrip("/"))
    return name if name.isidentifier() and os.path.isfile(os.path.join(directory, "__init__.py")) else ""


def _load(load: Callable[[], object], installed: VirtualEnvironment | None) -> None:
    try:
        load()
    # a package of the application's that is imported here is its news, whatever it raises
    except Exception as error:
        needs = installed.replaced_of(own_requirements()) if installed is not None else []
        hint = f"; of its packages, servd needs {', '.join(needs)}" if needs else ""
        raise DeployError(
            f"servd's own code cannot be loaded with what the application brings{hint}\n"
            + "".join(traceback.format_exception(error))
        ) from error


def import_path(*parts: Iterable[str]) -> list[str]:
    """The whole import path, each directory once; servd itself stays importable, last."""
    return list(dict.fromkeys([*(path for part in parts for path in part), os.path.dirname(PACKAGE_DIR)]))


def interpreter_path(path: Sequence[str], daemon_path: Iterable[str]) -> list[str]:
    """`path` without what came from the daemon's start directory and PYTHONPATH."""
    foreign = {os.path.realpath(item) for item in daemon_path}
    return [item for item in path if item and os.path.realpath(item) not in foreign]


def _home(order: BuildOrder, working_dir: str) -> list[str]:
    if working_dir:
        return [working_dir]
    if order.driver_path:
        return [path or order.start_dir for path in order.driver_path]
    return [order.start_dir, *order.python_path.split(os.pathsep)]


def _absolute(paths: Iterable[str], cwd: str) -> list[str]:
    """The non-empty paths, absolute and each once."""
    return list(dict.fromkeys(os.path.normpath(os.path.join(cwd, path)) for path in paths if path))


def _setup_timeout_s(env: dict[str, Any]) -> float:
    given = (env.get("config") or {}).get("setup_timeout_seconds", DEFAULT_SETUP_TIMEOUT_S)
    return float("inf") if given == -1 else float(given)


def _is_interpreter_dir(path: str) -> bool:
    homes = {os.path.realpath(home) for home in sysconfig.get_paths().values()}
    return os.path.realpath(path) in homes or path.endswith((".zip", "lib-dynload"))
