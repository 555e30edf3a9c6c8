"""A Dockerfile carried out without Docker: this host's root directory, under an overlay, stands for the base image."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system.running_daemon import eventually

BASE = "python:3.13-slim"
PYTHON = Path(sys.executable).resolve()
PATH = f"{PYTHON.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
NEEDED = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip", "useradd")
# as root, in a mount namespace of its own: `root` is the overlay then, with this test's interpreter in the place of the base's
# and without this host's users
BASE_SCRIPT = """
mkdir -p {place} && mount -t tmpfs tmpfs {place} && cd {place} && mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --bind /dev root/dev && mount -t tmpfs tmpfs root/dev/shm && mount -t proc proc root/proc
mount -t tmpfs -o mode=1777 tmpfs root/tmp
chmod o+x {above}
for file in passwd group; do awk -F: '$3 < 100 || $3 == 65534' /etc/$file > root/etc/$file; done
cd root{home}
[ -e python ] || ln -s {python} python
printf '#!/bin/sh\nexec {python} -m pip "$@"\n' > pip && chmod +x pip
"""


def why_not() -> str:
    """Why nothing of it works on this host; "" if it does."""
    if os.getuid() != 0:
        return "an image is made as root"
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        return f"needs {', '.join(missing)}"
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True).stderr


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with what follows each, in their order."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@dataclass
class Image:
    """What the last stage of a Dockerfile came to. root: as processes in the mount namespace `apart` see it."""

    apart: subprocess.Popen[bytes]
    root: str
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "root"
    workdir: str = "/"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """A file of the image, for this process to read and write; `inside` is absolute, or below the working directory."""
        return Path(f"/proc/{self.apart.pid}/root{self.root}{os.path.join('/', self.workdir, inside)}")

    def inside(self, command: list[str], user: str = "") -> list[str]:
        """The command line that runs it in the image, in the mount namespace `apart`."""
        who = user or self.user
        words = [f"{key}={value}" for key, value in {**self.variables, "HOME": self.home(who)}.items()]
        start = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(command)}"
        identity = ["setpriv", f"--reuid={who}", f"--regid={who}", "--init-groups", "--no-new-privs"]
        return ["chroot", self.root, *identity, "env", "-i", *words, "sh", "-c", start]

    def home(self, user: str) -> str:
        """Home directory of a user of the image."""
        lines = self.path("/etc/passwd").read_text().splitlines()
        return next(line.split(":")[5] for line in lines if line.startswith(f"{user}:"))

    def build(self, command: str) -> None:
        """A step of the build; what pip needs to reach its index comes from here."""
        variables = {
            key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "http", "HTTP"))
        }
        line = self.inside(["env", *(f"{key}={value}" for key, value in variables.items()), "sh", "-c", command])
        done = subprocess.run([*self.enter(), *line], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def enter(self) -> list[str]:
        """What goes before a command that shall see the image's mounts."""
        return ["nsenter", f"--mount=/proc/{self.apart.pid}/ns/mnt"]


def built(folder: Path, place: Path) -> Iterator[Image]:
    """The image of the Dockerfile in `folder`, until the generator is closed. place: a new folder; nothing stays in it."""
    stages: dict[str, Image] = {}
    try:
        for number, (word, rest) in enumerate(instructions((folder / "Dockerfile").read_text())):
            if word == "FROM":
                base, _, name = rest.partition(" AS ")
                assert base == BASE
                image = stages[name] = _base(place / str(number))
            else:
                _STEPS[word](image, rest, folder, stages)
        yield image
    finally:
        for stage in stages.values():
            stage.apart.kill()
            stage.apart.wait()


def _base(place: Path) -> Image:
    apart = subprocess.Popen(["unshare", "--mount", "--propagation=private", "sleep", "infinity"])
    own = os.readlink("/proc/self/ns/mnt")
    eventually(lambda: os.readlink(f"/proc/{apart.pid}/ns/mnt") != own)
    image = Image(apart, f"{place}/root")
    above = " ".join(f"root{folder}" for folder in PYTHON.parents)
    script = BASE_SCRIPT.format(place=place, python=PYTHON, home=PYTHON.parent, above=above)
    subprocess.run([*image.enter(), "sh", "-e", "-c", script], check=True)
    return image


def _copy(image: Image, rest: str, folder: Path, stages: dict[str, Image]) -> None:
    *words, target = rest.split()
    options = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--"))
    sources = [word for word in words if not word.startswith("--")]
    place = image.path(target)
    place.mkdir(parents=True, exist_ok=True)
    for source in sources:
        origin = stages[options["from"]].path(source) if "from" in options else folder / source
        if "from" in options or origin.is_dir():
            shutil.copytree(origin, place, symlinks=True, dirs_exist_ok=True)
        else:
            for file in folder.glob(source):
                shutil.copy(file, place)
    if "chown" in options:
        subprocess.run([*image.enter(), *image.inside(["chown", "-R", options["chown"], target], "root")], check=True)


def _run(image: Image, rest: str, *_: Any) -> None:
    image.build(rest)


def _env(image: Image, rest: str, *_: Any) -> None:
    for word in shlex.split(rest):
        key, _sign, value = word.partition("=")
        image.variables[key] = value.replace(f"${key}", image.variables.get(key, ""))


def _workdir(image: Image, rest: str, *_: Any) -> None:
    image.workdir = rest
    image.path(rest).mkdir(parents=True, exist_ok=True)


def _health(image: Image, rest: str, *_: Any) -> None:
    image.health = json.loads(rest.partition("CMD ")[2])


def _user(image: Image, rest: str, *_: Any) -> None:
    image.user = rest


def _command(image: Image, rest: str, *_: Any) -> None:
    image.command = json.loads(rest)


def _volume(image: Image, rest: str, *_: Any) -> None:
    image.volumes.append(rest)


def _expose(image: Image, rest: str, *_: Any) -> None:
    image.ports.append(rest)


_STEPS = {
    "COPY": _copy,
    "RUN": _run,
    "ENV": _env,
    "WORKDIR": _workdir,
    "USER": _user,
    "CMD": _command,
    "HEALTHCHECK": _health,
    "VOLUME": _volume,
    "EXPOSE": _expose,
}


class Container:
    """An image's command as process 1 of namespaces of its own. errors: the file that has what it wrote on stderr."""

    def __init__(self, image: Image, errors: Path, command: list[str] | None = None) -> None:
        self.image, self.errors = image, errors
        # no `exec` of a shell in between would do: process 1 has to be the command itself
        start = f"ip link set lo up && exec {shlex.join(image.inside(command or image.command))}"
        apart = [
            "unshare",
            "--pid",
            "--net",
            "--ipc",
            "--mount",
            "--fork",
            "--kill-child",
            f"--mount-proc={image.root}/proc",
        ]
        with open(errors, "wb") as said:
            self.process = subprocess.Popen(
                [*image.enter(), *apart, "sh", "-c", start], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def first(self) -> int:
        """Pid of its process 1, as this host counts."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        eventually(lambda: self.process.poll() is not None or path.read_text())
        assert self.process.poll() is None, self.errors.read_text()
        return int(path.read_text())

    def executed(self, command: list[str]) -> "subprocess.Popen[str]":
        """As `docker exec` runs it: in the container, by the image's user."""
        into = ["nsenter", f"--target={self.first()}", "--mount", "--pid", "--net", "--ipc"]
        return subprocess.Popen(
            [*into, *self.image.inside(command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def said(self, command: list[str]) -> str:
        """What `docker exec` prints; AssertionError where it fails."""
        process = self.executed(command)
        text = process.communicate(timeout=60)[0]
        assert process.returncode == 0, text
        return text

    def is_healthy(self) -> bool:
        """What its health check comes to."""
        process = self.executed(self.image.health)
        process.communicate(timeout=10)
        return process.returncode == 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        """As `docker stop` does; gives the exit code."""
        os.kill(self.first(), number)
        return self.process.wait(70)

    def close(self) -> None:
        """End it at once, whatever state it is in."""
        if self.process.poll() is None:
            os.kill(self.first(), signal.SIGKILL)
            self.process.wait(20)

    def states(self) -> dict[str, str]:
        """State letter of each of its processes, by pid inside and name: `Z` = ended, and nobody has waited for it."""
        code = "import glob; print([open(p).read() for p in glob.glob('/proc/[0-9]*/stat')])"
        found = re.findall(r"(\d+) \((.*?)\) (\w)", self.said(["python", "-c", code]))
        return {f"{pid} {name}": state for pid, name, state in found}

    def users(self) -> set[str]:
        """Who its processes belong to, as this host calls them."""
        namespace = os.readlink(f"/proc/{self.first()}/ns/pid")
        found = set()
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(place / "ns/pid") == namespace:
                    found.add(str(place.stat().st_uid))
            except OSError:
                continue
        return found


def user_id(image: Image) -> str:
    """Number of the image's user."""
    lines = image.path("/etc/passwd").read_text().splitlines()
    return next(line.split(":")[2] for line in lines if line.startswith(f"{image.user}:"))
