"""The `pip` field of a runtime environment: a virtual environment per distinct list, made once.

How this works: pip runs inside the new environment, whose interpreter sees servd's own packages through a `.pth` file. So what
servd brings (pydantic, FastAPI ...) counts as installed and is there once, what the list asks for beyond that goes into the new
environment and comes first. An environment knows its own path, so it is made in place, under a lock, and a file that is written
last tells that it is whole.
"""

import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distributions, requires
from importlib.util import find_spec
from typing import Any

from servd.exceptions import DeployError
from servd.ground.clock import Clock
from servd.ground.durable import sync_tree
from servd.ground.package import DISTRIBUTION
from servd.ground.quick_dataclass import dataclass
from servd.replica.code.code_cache import cache_dir, locked
from servd.replica.code.requirements import names_paths, requirements

_SHOWN_CHARS = 2000
_INTERPRETER = sys.executable
_WHOLE = "servd-complete"


@dataclass(frozen=True, slots=True)
class VirtualEnvironment:
    """A virtual environment that is whole. home: its directory."""

    home: str

    @property
    def python(self) -> str:
        """Its interpreter."""
        return os.path.join(self.home, "bin", "python")

    @property
    def packages(self) -> str:
        """Directory of what was installed."""
        return sysconfig.get_path("purelib", "venv", {"base": self.home})

    def activate(self) -> list[str]:
        """Let this process, and the programs it starts, use the environment.

        Returns:
            Directories for the import path: its packages, and what their `.pth` files add.
        """
        before = sys.path[:]
        site.addsitedir(self.packages)
        added = [path for path in sys.path if path not in before and path != self.packages]
        sys.path[:] = before
        os.environ["VIRTUAL_ENV"] = self.home
        os.environ["PATH"] = os.pathsep.join((os.path.dirname(self.python), os.environ.get("PATH", os.defpath)))
        # as of a program started in it; what servd itself starts goes by multiprocessing's own note of the interpreter
        sys.executable = self.python
        sys.prefix = sys.exec_prefix = self.home
        return [self.packages, *added]

    def shadowed(self) -> list[str]:
        """Installed top-level modules that this process has loaded already, from elsewhere: the loaded ones stay."""
        loaded = []
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if "." in name or file is None or file.startswith(self.packages):
                continue
            if any(os.path.exists(os.path.join(self.packages, name + end)) for end in ("/__init__.py", ".py")):
                loaded.append(name)
        return loaded

    def replaced_of(self, lines: Iterable[str]) -> list[str]:
        """Those requirements whose package is in the environment."""
        there = {_plain_name(found.name) for found in distributions(path=[self.packages])}
        return [line for line in lines if _plain_name(line) in there]


def own_requirements() -> list[str]:
    """What servd itself requires; [] where it was not installed."""
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    return [line for line in lines if "extra ==" not in line]


def _plain_name(requirement: str) -> str:
    name = re.match(r"[\w.-]*", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def virtual_environment(
    pip: Any, state_dir: str, cwd: str, *, deadline: float, clock: Clock
) -> VirtualEnvironment | None:
    """The environment that holds a valid `pip` field; None for no field or an empty list.

    Args:
        pip: requirements (pip's option lines too), the path of a requirements file (relative to `cwd`), or an object with
            `packages`, `pip_check` (false), `pip_version`.
        deadline: monotonic seconds; waiting for another process that makes the same one counts.

    Raises:
        DeployError: pip failed (its last words are in the text), or the deadline passed.
    """
    options: Mapping[str, Any] = pip if isinstance(pip, Mapping) else {"packages": pip or []}
    lines, files = requirements(options.get("packages") or [], cwd)
    if not lines:
        return None
    version, check = options.get("pip_version") or "", bool(options.get("pip_check", False))
    # a path in the list means another thing in another directory
    home = cwd if any(map(names_paths, lines)) else ""
    parts = json.dumps([sys.version, _INTERPRETER, lines, files, version, check, home])
    made = VirtualEnvironment(
        os.path.join(cache_dir(state_dir), "v-" + hashlib.sha256(parts.encode()).hexdigest()[:40])
    )
    whole = os.path.join(made.home, _WHOLE)
    if os.path.isfile(whole):
        return made
    os.makedirs(cache_dir(state_dir), 0o700, exist_ok=True)
    try:
        with locked(made.home + ".lock", deadline, clock) as lock:
            if not os.path.isfile(whole):
                # of a build that was killed
                shutil.rmtree(made.home, ignore_errors=True)
                _Builder(made, cwd, lock, deadline, clock).build(lines, version, check=check)
                # one that lost its data in a power cut would be taken for whole
                sync_tree(made.home)
                with open(whole, "w", encoding="utf-8"):
                    pass
    except DeployError as error:
        raise DeployError(f"pip: {error}") from error
    except OSError as error:
        raise DeployError(f"pip: {error.filename or made.home}: {error.strerror or error}") from error
    return made


class _Builder:
    """Makes one environment; leaves nothing behind when that fails."""

    def __init__(self, made: VirtualEnvironment, cwd: str, lock: int, deadline: float, clock: Clock) -> None:
        self._made = made
        self._cwd = cwd
        self._lock = lock
        self._deadline = deadline
        self._clock = clock

    def build(self, lines: Sequence[str], version: str, *, check: bool) -> None:
        """Make it and install."""
        try:
            venv.EnvBuilder(symlinks=True, with_pip=False).create(self._made.home)
            self._show_own_packages()
            if find_spec("pip") is None:
                self._run("ensurepip", "--default-pip")
            if version:
                self._pip("install", "--force-reinstall", "pip" + (f"=={version}" if version[0].isdigit() else version))
            file = os.path.join(self._made.home, "requirements.txt")
            with open(file, "w", encoding="utf-8") as written:
                written.write("\n".join(lines) + "\n")
            self._pip("install", "-r", file)
            if check:
                self._pip("check")
        except BaseException:
            shutil.rmtree(self._made.home, ignore_errors=True)
            raise

    def _show_own_packages(self) -> None:
        """Put the packages of this interpreter, and their `.pth` files, behind those of the environment."""
        homes = [path for path in site.getsitepackages() if os.path.isdir(path)]
        if site.ENABLE_USER_SITE:
            homes.append(site.getusersitepackages())
        lines = [f"import site; site.addsitedir({path!r})" for path in homes]
        with open(os.path.join(self._made.packages, "_servd.pth"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def _pip(self, verb: str, *words: str) -> None:
        self._run("pip", verb, "--no-input", "--disable-pip-version-check", *words)

    def _run(self, module: str, *words: str) -> None:
        left = None if self._deadline == float("inf") else max(0.1, self._deadline - self._clock.now())
        variables = {**os.environ, "RAY_RUNTIME_ENV_CREATE_WORKING_DIR": self._cwd}
        # of the daemon's or the user's own: the environment has to be alone with servd's packages
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            variables.pop(name, None)
        try:
            done = subprocess.run(
                [self._made.python, "-m", module, *words],
                cwd=self._cwd,
                env=variables,
                # pip holds the lock too: if this process is killed, nobody builds while pip still writes
                pass_fds=(self._lock,),
                timeout=left,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeployError("installing took longer than setup_timeout_seconds allows") from error
        if done.returncode != 0:
            raise DeployError(f"`{module} {words[0]}` failed:\n{done.stdout.strip()[-_SHOWN_CHARS:]}")
