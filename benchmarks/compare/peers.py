"""The peers' virtual environments, made on first use."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from servd.ground.package import DISTRIBUTION

PEERS_DIR = Path(__file__).parents[2] / ".cache" / "peers"
INSTALL_LIMIT_S = 900.0
REQUIREMENTS = {
    "uvicorn": ("uvicorn[standard]", "fastapi"),
    "hypercorn": ("hypercorn", "uvloop", "fastapi"),
    "mosec": ("mosec",),
    "litserve": ("litserve", "uvloop"),
    "ray": ("ray[serve]", "uvloop"),
    "gunicorn": ("gunicorn", "uvicorn-worker", "uvicorn[standard]", "starlette"),
}
_PACKAGES = "import sysconfig; print(sysconfig.get_path('platlib'))"


class NotInstallableError(Exception):
    """The peer cannot be had here."""


def python_of(peer: str, home: Path = PEERS_DIR, requirements: Sequence[str] | None = None) -> str:
    """Interpreter of the peer's environment, which is made when it is missing.

    Args:
        home: folder of the environments.
        requirements: what pip installs, instead of what the peer is known to need.

    Raises:
        NotInstallableError: pip could not.
    """
    directory = home / peer
    python = directory / "bin" / "python"
    mark = directory / "installed"
    needed = REQUIREMENTS[peer] if requirements is None else requirements
    wanted = " ".join(needed)
    if mark.is_file() and mark.read_text() == wanted:
        return str(python)
    print(f"{peer}: installing {wanted} into {directory}", file=sys.stderr, flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(directory)], [*pip, *needed]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise NotInstallableError(f"installing took longer than {INSTALL_LIMIT_S:.0f} s") from None
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise NotInstallableError(" ".join(last) or f"{command[0]} ended with {done.returncode}")
    mark.write_text(wanted)
    return str(python)


def sees_packages_of(python: str, other: str) -> None:
    """Let an interpreter's environment see what another's holds, behind its own packages."""
    own, others = (Path(_printed(interpreter, _PACKAGES)) for interpreter in (python, other))
    (own / "others.pth").write_text(f"{others}\n")


def version_of(package: str, python: str | None = None) -> str:
    """The version installed, by default in the environment of the peer of that name."""
    name = DISTRIBUTION if package == "servd" else package
    return _printed(python or python_of(package), f"import importlib.metadata as m; print(m.version({name!r}))")


def _printed(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
