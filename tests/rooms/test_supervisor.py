"""The supervisor, with real processes."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from servd.controller.supervisor import Key, Supervisor, expanded
from servd.ground.pidfd import start_ticks

LIMIT_S = 10.0
THIS = "tests.rooms.test_supervisor"


def write_variable(path: str, name: str, _lifetime: Connection) -> None:
    """Runs in the child."""
    Path(path).write_text(os.environ.get(name, "unset"))


def end_with(code: int, _lifetime: Connection) -> None:
    """Runs in the child."""
    sys.exit(code)


def live_on(lifetime: Connection) -> None:
    """Runs in the child, until the pipe ends."""
    lifetime.poll(LIMIT_S)


def a_stranger(*command: str) -> "subprocess.Popen[bytes]":
    """A process that the supervisor did not start."""
    return subprocess.Popen(command)


class Room:
    def __init__(self, lifetime: Connection) -> None:
        self.exits: asyncio.Queue[tuple[Key, int, int | None]] = asyncio.Queue()
        self.supervisor = Supervisor(asyncio.get_running_loop(), lifetime, lambda *exit: self.exits.put_nowait(exit))

    async def exit(self) -> tuple[Key, int, int | None]:
        return await asyncio.wait_for(self.exits.get(), LIMIT_S)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    reader, writer = multiprocessing.Pipe(duplex=False)
    room = Room(reader)
    yield room
    room.supervisor.kill_all()
    while room.supervisor.living():
        await room.exit()
    writer.close()
    reader.close()


@pytest.mark.slow
async def test_variables_hold_in_the_child_only(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/old")
    file = str(tmp_path / "out")
    variables = {"PATH": "/new:${PATH}", "SERVD_TEST_ONLY": "1"}
    room.supervisor.start(("proxy", "p"), f"{THIS}:write_variable", (file, "PATH"), variables)
    assert (await room.exit())[2] == 0
    assert Path(file).read_text() == "/new:/old"
    assert os.environ["PATH"] == "/old"
    assert "SERVD_TEST_ONLY" not in os.environ


@pytest.mark.slow
async def test_an_exit_is_told_with_its_code(room: Room) -> None:
    pid, ticks = room.supervisor.start(("replica", "r"), f"{THIS}:end_with", (3,), {})
    assert ticks == start_ticks(pid) > 0
    assert await room.exit() == (("replica", "r"), pid, 3)
    assert not room.supervisor.is_watched(("replica", "r"))


@pytest.mark.slow
async def test_a_killed_one_is_told_by_its_signal(room: Room) -> None:
    pid, _ = room.supervisor.start(("replica", "r"), f"{THIS}:live_on", (), {})
    assert room.supervisor.kill(("replica", "r"))
    assert await room.exit() == (("replica", "r"), pid, -signal.SIGKILL)
    assert not room.supervisor.kill(("replica", "r"))


async def test_an_adopted_one_is_told_with_the_status_of_whoever_reaped_it(room: Room) -> None:
    # as if somebody else's: the supervisor does not reap it
    process = a_stranger("sleep", "60")
    assert room.supervisor.adopt(("replica", "r"), process.pid, start_ticks(process.pid))
    process.kill()
    room.supervisor.note_status(process.pid, process.wait())
    assert await room.exit() == (("replica", "r"), process.pid, -signal.SIGKILL)


@pytest.mark.slow
async def test_without_word_of_its_status_it_is_unknown(room: Room) -> None:
    process = a_stranger("sleep", "60")
    room.supervisor.adopt(("replica", "r"), process.pid, start_ticks(process.pid))
    process.kill()
    assert await room.exit() == (("replica", "r"), process.pid, None)
    process.wait()


async def test_another_process_with_an_old_number_is_not_adopted(room: Room) -> None:
    assert not room.supervisor.adopt(("replica", "r"), os.getpid(), start_ticks(os.getpid()) + 1)
    gone = a_stranger("true")
    ticks = start_ticks(gone.pid)
    gone.wait()
    assert not room.supervisor.adopt(("replica", "r"), gone.pid, ticks)
    assert room.supervisor.living() == []


async def test_a_wait_for_all_ends_with_the_last_one_and_its_limit_with_some_left(room: Room) -> None:
    supervisor = room.supervisor
    assert await supervisor.wait_until_none_lives(0.0)
    processes = [a_stranger("sleep", "60") for _ in range(2)]
    for number, process in enumerate(processes):
        supervisor.adopt(("replica", str(number)), process.pid, start_ticks(process.pid))
    processes[0].kill()
    await room.exit()
    assert not await supervisor.wait_until_none_lives(0.05)
    waiting = asyncio.create_task(supervisor.wait_until_none_lives(LIMIT_S))
    processes[1].kill()
    assert await waiting
    assert supervisor.living() == []
    for process in processes:
        process.wait()


@pytest.mark.parametrize(
    ("name", "value", "old", "expected"),
    [
        ("PATH", "/a:${PATH}", "/b", "/a:/b"),
        ("PATH", "/a", "/b", "/a"),
        ("HOME", "${HOME}/x", "/b", "${HOME}/x"),
        ("LD_PRELOAD", "x ${PATH}", "/b", "x ${PATH}"),
        ("PYTHONPATH", "/a", "/servd", "/a:/servd"),
        ("PYTHONPATH", "/a", "", "/a"),
    ],
)
def test_a_search_path_may_refer_to_its_old_value(name: str, value: str, old: str, expected: str) -> None:
    assert expanded(name, value, old) == expected
