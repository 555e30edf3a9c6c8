"""What `servd doctor` does: look at the host and the set-up, and say of each fault what to do about it."""

import contextlib
import errno
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires

from servd.daemon.admin_client import AdminClient
from servd.daemon.directories import check_socket_paths
from servd.daemon.launch import log_out_notice
from servd.daemon.start_check import check_host, is_free_threaded
from servd.daemon.state_lock import running_pid
from servd.exceptions import ServdError
from servd.ground.edition import edition_at
from servd.ground.package import DISTRIBUTION, PACKAGE_DIR, VERSION
from servd.ground.settings import admin_socket, socket_dir_of

LEAST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
"""Tested: from the first to the second."""
LEAST_FREE_BYTES = 100 << 20
EXTRAS = {
    "testing": ("httpx", "servd.testing needs it to test applications over HTTP"),
    "grpc": ("grpcio", "applications that answer gRPC need it"),
    "otel": (
        "opentelemetry-exporter-otlp-proto-http",
        "`--trace-endpoint` needs it, and OpenTelemetry's SDK, which comes with it",
    ),
}
"""What users may want beside servd's own requirements: by extra, the distribution, and what it is for."""


class Verdict(StrEnum):
    """How bad it is. NOTE: worth knowing, and nothing fails for it."""

    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. advice: what to do, "" where all is well."""

    verdict: Verdict
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """One that a daemon will listen on. option: of `servd start`, chooses another."""

    host: str
    number: int
    option: str


def show(found: Iterable[Finding]) -> bool:
    """Print them as they come; whether none is a fault."""
    faults = notes = 0
    for finding in found:
        faults += finding.verdict == Verdict.FAULT
        notes += finding.verdict == Verdict.NOTE
        print(f"{finding.verdict:<5}  {finding.text}", flush=True)
        if finding.advice:
            print(f"       -> {finding.advice}", flush=True)
    kinds = [f"{count} {word}{'s' * (count != 1)}" for count, word in ((faults, "fault"), (notes, "note")) if count]
    print(f"{' and '.join(kinds) or 'Nothing wrong was'} found.")
    return not faults


def findings(state_dir: str, ports: Iterable[Port]) -> Iterator[Finding]:
    """All of them, one after the other. ports: looked at where no daemon runs on the state directory."""
    yield of_python(sys.version_info[:2], is_free=is_free_threaded())
    yield of_kernel(sys.platform, has_pidfd=hasattr(os, "pidfd_open") and _has_pidfd())
    yield from of_package(PACKAGE_DIR, os.getcwd(), _foreign_version(), shutil.which("servd"))
    yield from of_requirements(_requirements(), _version_of)
    yield _of_limits()
    yield of_state_dir(state_dir)
    pid = running_pid(state_dir)
    yield from of_socket_dir(socket_dir_of(state_dir), is_running=pid is not None)
    if pid is not None:
        yield of_daemon(state_dir, pid, _edition_of(state_dir))
        return
    yield Finding(Verdict.OK, f"no daemon runs on {state_dir}")
    for port in ports:
        yield of_port(port)


def of_python(version: tuple[int, int], *, is_free: bool) -> Finding:
    """The interpreter. version: major and minor. is_free: built without the lock (GIL)."""
    name = f"Python {version[0]}.{version[1]}{', free-threaded' if is_free else ''} ({sys.executable})"
    if version < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Finding(Verdict.FAULT, f"{name} is too old", f"make the environment with Python {least} or newer")
    newest = ".".join(map(str, NEWEST_PYTHON))
    if is_free:
        return Finding(Verdict.FAULT, f"{name} runs no daemon", f"use Python {newest} with its lock (GIL)")
    if version > NEWEST_PYTHON:
        return Finding(Verdict.NOTE, f"{name} was not tested", f"where something fails, try Python {newest}")
    return Finding(Verdict.OK, name)


def of_kernel(platform: str, *, has_pidfd: bool) -> Finding:
    """The operating system."""
    if platform != "linux":
        return Finding(
            Verdict.FAULT, f"servd does not run on {platform}", "use Linux, or a container or virtual machine with it"
        )
    if not has_pidfd:
        return Finding(
            Verdict.FAULT, "the kernel has no pidfd_open", "use Linux 5.3 or newer, and let the sandbox allow that call"
        )
    return Finding(Verdict.OK, f"Linux {os.uname().release}")


def of_package(home: str, folder: str, foreign: str | None, program: str | None) -> Iterator[Finding]:
    """What `import servd` and the command `servd` give.

    Args:
        home: of the package that runs. folder: the current one.
        foreign: version of the distribution `servd`, if one is installed. program: path of the command, if there is one.
    """
    yield Finding(Verdict.OK, f"servd {VERSION} in {home}")
    if foreign is not None:
        yield Finding(
            Verdict.FAULT,
            f"another distribution called servd is installed, version {foreign}, with the same import name",
            f"pip uninstall servd; then pip install --force-reinstall --no-deps {DISTRIBUTION} (or the wheel, or the checkout)",
        )
    for name in ("servd.py", "servd/__init__.py"):
        path = os.path.join(folder, name)
        if os.path.exists(path) and os.path.realpath(os.path.dirname(path)) != os.path.realpath(home):
            yield Finding(Verdict.FAULT, f"{path} hides servd from programs in this folder", "rename it")
    here = os.path.join(os.path.dirname(sys.executable), "servd")
    if program is None:
        yield Finding(Verdict.NOTE, "there is no command servd on the PATH", f"activate the environment, or use {here}")
    elif os.path.exists(here) and not os.path.samefile(program, here):
        yield Finding(
            Verdict.NOTE,
            f"the command servd is {program}, of another environment than {sys.executable}",
            f"activate the environment, or use {here}",
        )


def of_requirements(lines: Iterable[str] | None, version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """What servd needs, and what it can use. lines: its requirements; None = it was not installed."""
    if lines is None:
        advice = f"pip install {DISTRIBUTION} (or the wheel, or the checkout)"
        yield Finding(
            Verdict.NOTE, "servd runs from its files and is not installed: what it needs was not looked at", advice
        )
        return
    own = [_name_in(line) for line in lines if "extra ==" not in line]
    missing = [name for name in own if version_of(name) is None]
    if missing:
        yield Finding(Verdict.FAULT, f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Finding(Verdict.OK, f"all {len(own)} packages that servd needs are there")
    for name, purpose in EXTRAS.values():
        if version_of(name) is None:
            yield Finding(Verdict.NOTE, f"{name} is not installed: {purpose}", f"pip install {name}")


def of_state_dir(state_dir: str) -> Finding:
    """Where a daemon keeps its goal, its logs and copies of code."""
    there = state_dir
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return Finding(Verdict.FAULT, f"{there} is not a directory", "choose another: --state-dir or SERVD_STATE_DIR")
    about = os.stat(there)
    if there == state_dir and about.st_uid != os.getuid():
        return Finding(
            Verdict.FAULT,
            f"the state directory {state_dir} belongs to uid {about.st_uid}, and you are uid {os.getuid()}",
            "choose one of your own: --state-dir or SERVD_STATE_DIR",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            Verdict.FAULT, f"nothing can be written in {there}", "choose another: --state-dir or SERVD_STATE_DIR"
        )
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize
    # file systems without a table of inodes say 0 of 0
    if free < LEAST_FREE_BYTES or (room.f_files and not room.f_favail):
        left = f"{free >> 20} MiB and {room.f_favail} inodes"
        return Finding(
            Verdict.FAULT,
            f"the disk of {there} has {left} left",
            "make room: changes and copies of code are written there",
        )
    if there == state_dir and stat.S_IMODE(about.st_mode) & 0o077:
        mode = f"{stat.S_IMODE(about.st_mode):o}"
        return Finding(Verdict.NOTE, f"others can enter {state_dir} (mode {mode})", f"chmod 700 {state_dir}")
    return Finding(Verdict.OK, f"the state directory {state_dir} can be used")


def of_socket_dir(socket_dir: str, *, is_running: bool) -> Iterator[Finding]:
    """Where a daemon's sockets lie, or will."""
    try:
        check_socket_paths(socket_dir)
    except ServdError as error:
        yield Finding(Verdict.FAULT, str(error), "then start the daemon in that environment")
        return
    if notice := log_out_notice(socket_dir):
        yield Finding(Verdict.NOTE, notice, "loginctl enable-linger")
    try:
        names = os.listdir(socket_dir)
    except FileNotFoundError:
        names = []
    except OSError as error:
        text = f"cannot look into {socket_dir}, the directory for sockets: {error.strerror}"
        yield Finding(Verdict.FAULT, text, "remove it, or set XDG_RUNTIME_DIR to a directory of your own")
        return
    if names and not is_running:
        what = f"{len(names)} sockets of a daemon that did not end cleanly lie in {socket_dir}"
        yield Finding(Verdict.NOTE, what, f"the next `servd start` replaces them; or rm -r {socket_dir}")


def of_daemon(state_dir: str, pid: int, edition: str | None) -> Finding:
    """The daemon that runs there. edition: that it says it is; None = it does not answer."""
    where = f"a daemon runs on {state_dir}, pid {pid}"
    if edition is None:
        return Finding(
            Verdict.FAULT,
            f"{where}, and does not answer",
            f"look at `servd logs --state-dir {state_dir} controller`; `servd stop --state-dir {state_dir}` ends it",
        )
    if edition != str(edition_at(PACKAGE_DIR)):
        return Finding(Verdict.NOTE, f"{where}, of another servd than this one: {edition}", "servd upgrade --wait")
    return Finding(Verdict.OK, where)


def of_port(port: Port) -> Finding:
    """Whether a daemon could listen there."""
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    where = f"port {port.number} of {port.host}"
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((port.host, port.number))
            # bound beside another's socket it may be, listened on it may not
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding(
                Verdict.FAULT,
                f"{where} is taken{_by_whom(port.number)}",
                f"end that program, or choose another port: servd start {port.option} {_next_port(port.number)}",
            )
        reason = (error.strerror or str(error)).lower()
        return Finding(Verdict.FAULT, f"{where}: {reason}", f"choose another: servd start {port.option} N")
    return Finding(Verdict.OK, f"{where} is free")


def _next_port(number: int) -> int:
    return number + 1 if number < 65535 else number - 1


def _by_whom(number: int) -> str:
    """by pid N (name), where this user may know."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        # state 0A: it listens
        inodes |= {
            f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == number
        }
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if inodes & set(_links(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    return f" by pid {pid} ({file.read(60).replace(bytes(1), b' ').decode(errors='replace').strip()})"
        except OSError:
            # it ended meanwhile, or is somebody else's
            continue
    return ""


def _links(folder: str) -> Iterator[str]:
    for name in os.listdir(folder):
        # of one's own process that with which the folder is read is closed again
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{name}")


def _of_limits() -> Finding:
    try:
        check_host(proxies=1)
    except ServdError as error:
        text, _, advice = str(error).rpartition(". ")
        return Finding(Verdict.FAULT, text, advice)
    return Finding(Verdict.OK, "files, processes and threads: the limits let a daemon start")


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _requirements() -> list[str] | None:
    try:
        return requires(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def _version_of(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _foreign_version() -> str | None:
    try:
        found = metadata("servd")
    except PackageNotFoundError:
        return None
    # what lies about of servd's own former name is no other package
    return None if "Ray Serve" in found["Summary"] else found["Version"]


def _name_in(requirement: str) -> str:
    end = next((at for at, sign in enumerate(requirement) if not (sign.isalnum() or sign in "-_.")), len(requirement))
    return requirement[:end]


def _edition_of(state_dir: str) -> str | None:
    try:
        status = AdminClient(f"unix://{admin_socket(socket_dir_of(state_dir))}").status()
    except ServdError:
        return None
    return str(status.get("edition", "an old one"))
