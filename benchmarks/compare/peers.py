"""The peers' virtual environments, made on first use."""

import subprocess
import sys
from pathlib import Path

PEERS_DIR = Path(__file__).parents[2] / ".cache" / "peers"
INSTALL_LIMIT_S = 900.0
REQUIREMENTS = {
    "uvicorn": ("uvicorn[standard]", "fastapi"),
    "hypercorn": ("hypercorn", "uvloop", "fastapi"),
    "mosec": ("mosec",),
    "litserve": ("litserve", "uvloop"),
    "ray": ("ray[serve]", "uvloop"),
}


class NotInstallableError(Exception):
    """The peer cannot be had here."""


def python_of(peer: str) -> str:
    """Interpreter of the peer's environment, which is made when it is missing.

    Raises:
        NotInstallableError: pip could not.
    """
    directory = PEERS_DIR / peer
    python = directory / "bin" / "python"
    mark = directory / "installed"
    wanted = " ".join(REQUIREMENTS[peer])
    if mark.is_file() and mark.read_text() == wanted:
        return str(python)
    print(f"{peer}: installing {wanted} into {directory}", file=sys.stderr, flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(directory)], [*pip, *REQUIREMENTS[peer]]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise NotInstallableError(f"installing took longer than {INSTALL_LIMIT_S:.0f} s") from None
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise NotInstallableError(" ".join(last) or f"{command[0]} ended with {done.returncode}")
    mark.write_text(wanted)
    return str(python)


def version_of(peer: str) -> str:
    """The version installed."""
    code = f"import importlib.metadata as m; print(m.version({peer!r}))"
    return subprocess.run([python_of(peer), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
