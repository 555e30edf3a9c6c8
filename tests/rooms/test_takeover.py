"""What a daemon leaves to another edition of itself, and when it may become one."""

import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from servd.daemon.keepsake import Keepsake
from servd.daemon.listeners import Listeners
from servd.daemon.takeover import Belongings, Handover, close_left, command, parse_handover, received
from servd.daemon.unix_sockets import UnixSockets
from servd.daemon.upgrade import Upgrader
from servd.exceptions import UpgradeError
from servd.ground.edition import Edition, Stamp, edition_at
from servd.ground.package import PROTOCOL
from servd.ground.settings import Settings
from tests.ports import free_port

OLD = Edition(PROTOCOL, "0.1.0", "aaaa")


def test_what_is_left_is_received_and_the_way_back_stays_open_until_it_is_closed(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path), str(tmp_path), http_port=free_port())
    listeners = Listeners()
    [http] = listeners.open("127.0.0.1", settings.http_port or 0, 1)
    admin = listeners.bind_admin("127.0.0.1", 0)
    keepsake = Keepsake()
    keepsake.save({("kind", "name"): b"value"})
    lock, tie = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
    reader, writer = multiprocessing.Pipe(duplex=False)
    has = Belongings(lock, listeners, UnixSockets(str(tmp_path)), (admin, None), reader, writer, keepsake, tie)
    text = has.handed_over(settings, "/home", "1 b c", "1 a b", [(7, -9)], "reason").text

    left = parse_handover(json.dumps({**json.loads(text), "of_tomorrow": 1}))
    assert (left.home, left.edition, left.before, left.error) == ("/home", "1 b c", "1 a b", "reason")
    assert [tuple(orphan) for orphan in left.orphans] == [(7, -9)]
    got = received(left, settings)
    # the one that hands over is a program no longer: its objects close nothing
    close_left(left)
    for one in (http, admin, *has.unix.sockets):
        one.detach()
    assert got.listeners.has("127.0.0.1", settings.http_port or 0)
    for server in (got.ports[0], got.listeners.open("127.0.0.1", settings.http_port or 0, 1)[0]):
        assert server is not None
        with socket.create_connection(server.getsockname()):
            server.accept()[0].close()
    assert got.unix.tend() is False, "they are where they were bound"
    assert got.keepsake.load() == {("kind", "name"): b"value"}
    got.lifetime_writer.close()
    with pytest.raises(EOFError):
        got.lifetime_reader.recv()
    got.lifetime_reader.close()
    got.keepsake.close()
    for one in (*got.unix.sockets, got.ports[0]):
        assert one is not None
        one.close()
    got.listeners.close("127.0.0.1", settings.http_port or 0)
    os.close(got.lock)
    os.close(got.tied_to or 0)
    reader._handle = writer._handle = None  # type: ignore[attr-defined]


def test_a_command_carries_the_way_back() -> None:
    back = command("/old")
    assert json.loads(command("/new", back)[-1]) == back
    assert command("/new", back)[-2] == "/new"


async def able(edition: str, place: str) -> bool:
    return True


async def too_old(edition: str, place: str) -> bool:
    return False


def a_package(directory: Path, protocol: int = PROTOCOL) -> Path:
    """A package that can be tried: it says what it is, and holds nothing else."""
    (directory / "ground").mkdir(parents=True)
    (directory / "ground" / "package.py").write_text(f'VERSION = "0.2.0"\nPROTOCOL = {protocol}\n')
    (directory / "ground" / "__init__.py").write_text("")
    (directory / "__init__.py").write_text("")
    (directory / "daemon").mkdir()
    (directory / "daemon" / "__init__.py").write_text("")
    (directory / "daemon" / "trial.py").write_text(
        "import json, sys\ndef take(handover):\n    print(json.dumps("
        f'{{"protocol": {protocol}, "version": "0.2.0", "place": sys.path[0]}}))\n'
    )
    return directory


@pytest.mark.parametrize(
    ("is_told", "protocol", "has_copy", "prepare", "reason"),
    [
        (False, PROTOCOL, True, able, "of an older servd than its controller"),
        (True, PROTOCOL + 1, True, able, "does not understand what runs"),
        (True, PROTOCOL, False, able, "no copy of what runs"),
        (True, PROTOCOL, True, too_old, "of an older servd, which cannot"),
        (True, PROTOCOL, True, able, ""),
    ],
)
async def test_what_cannot_be_upgraded_says_that_it_must_be_restarted(
    tmp_path: Path,
    is_told: bool,
    protocol: int,
    has_copy: bool,
    prepare: Callable[[str, str], Awaitable[bool]],
    reason: str,
) -> None:
    home = a_package(tmp_path / "home" / "servd", protocol)
    running = tmp_path / "program" / "aaaa" / "servd"
    if has_copy:
        running.mkdir(parents=True)
    settings = Settings(str(tmp_path), str(tmp_path))
    upgrader = Upgrader(settings, Stamp(OLD, str(running), str(home)), is_told, prepare, lambda: None)
    if not reason:
        assert await upgrader.prepare() == edition_at(str(home))
        return
    with pytest.raises(UpgradeError, match=reason) as refused:
        await upgrader.prepare()
    assert "servd stop && servd start" in str(refused.value)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("daemon/trial.py", "import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("daemon/trial.py", "def take(handover): print('what?')", "but this was: what?"),
        ("daemon/trial.py", "def take(handover): raise SystemExit(3)", "it ended with 3"),
    ],
)
async def test_a_version_that_does_not_pass_its_trial_is_refused_with_its_words(
    tmp_path: Path, file: str, text: str, reason: str
) -> None:
    home = a_package(tmp_path / "home" / "servd")
    (home / file).write_text(text)
    running = tmp_path / "program" / "aaaa" / "servd"
    running.mkdir(parents=True)
    upgrader = Upgrader(
        Settings(str(tmp_path), str(tmp_path)), Stamp(OLD, str(running), str(home)), True, able, lambda: None
    )
    with pytest.raises(UpgradeError, match="old one goes on") as refused:
        await upgrader.prepare()
    assert reason in str(refused.value)


TRIED = """
import importlib.metadata, re, sys
from servd.daemon.trial import take

asked, needed = ["servd-serve"], set()
while asked:
    name = re.sub("[-_.]+", "-", asked.pop()).lower()
    if name not in needed:
        needed.add(name)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            # for another Python or system
            continue
        asked += [re.match("[A-Za-z0-9._-]+", one)[0] for one in wanted if "extra ==" not in one]
owners = importlib.metadata.packages_distributions()
extra = {
    module for module, names in owners.items() if not needed & {re.sub("[-_.]+", "-", name).lower() for name in names}
}

class Plain:
    def find_spec(self, name, path=None, target=None):
        # a namespace that extras share with what FastAPI needs
        if name.partition(".")[0] in extra or name in ("opentelemetry.sdk", "opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

if sys.argv[2] == "plain":
    sys.meta_path.insert(0, Plain())
take(sys.argv[1])
print(*sorted(sys.modules.keys() & {"fastapi", "grpc", "httpx", "opentelemetry.sdk"}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("install", "loaded"), [("plain", "fastapi"), ("all extras", "fastapi grpc opentelemetry.sdk")]
)
def test_this_version_passes_its_trial_whatever_extras_are_installed(install: str, loaded: str) -> None:
    settings = {"state_dir": "/s", "socket_dir": "/r"}
    handover = Handover(settings, "/home", "1 b c", "1 a b", 3, (4, 5), (), (6, None), (), (7, 8))
    done = subprocess.run(
        [sys.executable, "-c", TRIED, handover.text, install], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == loaded


async def test_the_edition_that_runs_is_not_tried(tmp_path: Path) -> None:
    home = a_package(tmp_path / "servd")
    (home / "daemon" / "trial.py").write_text("no module at all")
    found = edition_at(str(home))
    upgrader = Upgrader(Settings("/s", "/s"), Stamp(found, "/copy", str(home)), True, too_old, lambda: None)
    assert await upgrader.prepare() == found


async def test_the_word_comes_after_the_answer_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.daemon.upgrade._END_LIMIT_S", 0.0)
    told: list[str] = []
    upgrader = Upgrader(Settings("/s", "/s"), Stamp(OLD, "/a", "/b"), True, able, lambda: told.append("now"))
    beginning = asyncio.create_task(upgrader.begin())
    await asyncio.sleep(0)
    assert told == []
    await beginning
    assert told == ["now"]
