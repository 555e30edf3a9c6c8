"""Tells whether a library's work at import goes on in replicas, forked or spawned as expected."""

import asyncio
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.rooms.replica_room import Room, a_room

REQUESTS = 20
_APP = """
import asyncio
from servd import deployment
{code}

AT_IMPORT = work()

@deployment
class Model:
    def sync(self):
        return work()

    async def on_the_loop(self):
        return work()

    async def on_a_thread(self):
        return await asyncio.to_thread(work)

    async def at_import(self):
        return AT_IMPORT

app = Model.bind()
"""


class Library(NamedTuple):
    """code: of a module, defines `work()`, whose result is the same each time. spawned: part of the reason, "" if forked."""

    name: str
    code: str
    spawned: str = ""


async def works_in_replicas(library: Library) -> None:
    """Work at import, then in replicas, 20 requests at once in each kind of handler: the same results, no hang."""
    # paths of sockets are short, those of pytest's directories are not
    with tempfile.TemporaryDirectory(prefix="servd-") as home:
        async with a_room(Path(home)) as room:
            await _works_in(room, library)


async def _works_in(room: Room, library: Library) -> None:
    room.write(libraryapp=_APP.format(code=library.code))
    order = room.order("libraryapp:app")
    hello = await room.open_fork_server(order)
    assert hello.result is not None
    assert hello.result.error == ""
    reason = hello.result.fork_unsafe
    assert library.spawned in reason
    assert bool(library.spawned) == bool(reason), reason
    start = room.start_of("Model")
    if reason:
        room.spawn(start, order)
    else:
        assert (await room.fork(start)).error == ""
    report = await room.report(start.replica_id, lambda r: r.phase in ("running", "failed"))
    assert report.error == ""
    room.route(start)
    expected = await room.call("Model", "at_import")
    for method in ("sync", "on_the_loop", "on_a_thread"):
        found = await asyncio.gather(*(room.call("Model", method) for _ in range(REQUESTS)))
        assert found == [expected] * REQUESTS
