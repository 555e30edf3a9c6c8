"""The `pip` field of a runtime environment: packages in a directory of their own, once per list."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from servd.clock import Clock
from servd.exceptions import DeployError
from servd.replica.code_cache import cached_directory

_SHOWN_CHARS = 2000


def installed_packages(pip: Any, state_dir: str, cwd: str, *, deadline: float, clock: Clock) -> list[str]:
    """Directories to put on the import path for a valid `pip` field; none for None or an empty list.

    Args:
        pip: requirements, the path of a requirements file (relative to `cwd`), or an object with `packages`,
            `pip_check` (false), `pip_version`.
        deadline: monotonic seconds.

    Raises:
        DeployError: pip failed (its last words are in the text), or the deadline passed.
    """
    options: Mapping[str, Any] = pip if isinstance(pip, Mapping) else {"packages": pip or []}
    wanted = _requirements(options.get("packages") or [], cwd)
    if not wanted:
        return []
    version, check = options.get("pip_version") or "", bool(options.get("pip_check", False))
    parts = json.dumps([sys.version, sys.executable, wanted, version, check])
    key = "p-" + hashlib.sha256(parts.encode()).hexdigest()[:40]

    def make(part: str, content: str) -> None:
        environment = dict(os.environ)
        if version:
            own_pip = os.path.join(part, "pip")
            _run_pip(["install", "--target", own_pip, "pip" + version], cwd, environment, deadline, clock)
            environment["PYTHONPATH"] = own_pip
        requirements = os.path.join(part, "requirements.txt")
        with open(requirements, "w", encoding="utf-8") as file:
            file.write("\n".join(wanted) + "\n")
        _run_pip(["install", "--target", content, "-r", requirements], cwd, environment, deadline, clock)
        if check:
            paths = (content, environment.get("PYTHONPATH", ""))
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            _run_pip(["check"], cwd, environment, deadline, clock)

    try:
        return [cached_directory(key, state_dir, make, deadline=deadline, clock=clock)]
    except DeployError as error:
        raise DeployError(f"pip: {error}") from error


def _requirements(packages: Any, cwd: str) -> list[str]:
    """The requirements, each once, in order."""
    if isinstance(packages, str):
        path = os.path.join(cwd, packages)
        try:
            with open(path, encoding="utf-8") as file:
                packages = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DeployError(f"pip: cannot read the requirements file {path}: {error}") from error
    return list(dict.fromkeys(item.strip() for item in packages if item.strip()))


def _run_pip(words: list[str], cwd: str, environment: dict[str, str], deadline: float, clock: Clock) -> None:
    left = None if deadline == float("inf") else max(0.1, deadline - clock.now())
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *words]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
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
    except OSError as error:
        raise DeployError(f"cannot run {sys.executable} -m pip: {error.strerror}") from error
    if done.returncode != 0:
        raise DeployError(f"`pip {words[0]}` failed:\n{done.stdout.strip()[-_SHOWN_CHARS:]}")
