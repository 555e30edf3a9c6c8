"""A file that user code has locked for one process alone, with real processes."""

import fcntl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rooms.replica_room import Room, a_room

pytestmark = pytest.mark.slow

APP = """
import fcntl
from servd import deployment
path = {path!r}
def locked():
    file = open(path, "a")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file
{at_import}
@deployment
class Kept:
    def __init__(self):
        global KEPT
        {in_constructor}
app = Kept.bind()
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        yield made


@pytest.mark.parametrize("place", ["at_import", "in_constructor"])
async def test_a_file_that_one_process_alone_may_write_to_is_the_replicas(
    room: Room, place: str, tmp_path: Path
) -> None:
    code = {"at_import": "", "in_constructor": "pass", place: "KEPT = locked()"}
    path = tmp_path / "data.db"
    room.write(kept=APP.format(path=str(path), **code))
    order = room.order("kept:app", preload="Kept" if place == "in_constructor" else "")
    hello = await room.open_fork_server(order)
    assert hello.result is not None
    assert f"{path} locked for one process alone" in hello.result.fork_unsafe
    with path.open("a") as file:
        # no longer the fork server's
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
