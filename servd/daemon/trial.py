"""The edition that shall take over is tried first, in a process of its own: whether it starts, and understands what is there.

Other editions know `take` by its name, which may not change, nor may what it prints.
"""

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import sys

import servd
from servd.daemon.takeover import Handover, parse_handover
from servd.exceptions import UpgradeError
from servd.ground.edition import Edition
from servd.ground.package import PACKAGE_DIR, PROTOCOL, VERSION
from servd.ground.settings import Settings

LIMIT_S = 60.0
_ENTRY = "import sys; sys.path.insert(0, sys.argv[1]); from servd.daemon.trial import take; take(sys.argv[2])"
_NOT_LOADED = ("servd.__main__", "servd.compat", "servd.engines.on_ray", "servd.app.mypy_plugin", "servd.testing")
"""What starts something when it is loaded, stands for another package, or is for a Ray cluster, mypy or tests alone."""
_MAY_LACK = frozenset({"google", "grpc", "opentelemetry", "requests"})
"""Packages of extras: modules that need them are loaded where somebody asks for it."""
_LINES_SHOWN = 3


async def try_edition(place: str, wanted: Edition, handover: str, limit_s: float = LIMIT_S) -> None:
    """Let the package in `place` load all that it has, and read a handover.

    Args:
        wanted: what it must say that it is.
        handover: as a daemon would leave it; its descriptors are only numbers here.

    Raises:
        UpgradeError: it does not start, and what it said; or it is something else.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", _ENTRY, place, handover),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, errors = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise UpgradeError(f"servd {wanted} did not load within {limit_s:.0f} s; the old one goes on") from None
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()[-_LINES_SHOWN:]
        words = "\n".join(lines) or f"it ended with {process.returncode}"
        raise UpgradeError(f"servd {wanted} does not start; the old one goes on:\n{words}")
    found = said.decode(errors="replace").strip()
    expected = _words(wanted.protocol, wanted.version, place)
    if found != expected:
        raise UpgradeError(f"servd {wanted} was to be tried, but this was: {found or 'nothing'}; the old one goes on")


def take(handover: str) -> None:
    """Be the one that is tried: load every module, read the handover, say what this is."""
    for name in sorted(module.name for module in pkgutil.walk_packages(servd.__path__, "servd.", onerror=_fail)):
        if not name.startswith(_NOT_LOADED):
            _load(name)
    found: Handover = parse_handover(handover)
    Settings(**found.settings)
    print(_words(PROTOCOL, VERSION, os.path.dirname(PACKAGE_DIR)), flush=True)


def _load(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _MAY_LACK:
            raise


def _words(protocol: int, version: str, place: str) -> str:
    return json.dumps({"protocol": protocol, "version": version, "place": place})


def _fail(_: str) -> None:
    raise
