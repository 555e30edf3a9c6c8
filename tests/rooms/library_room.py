"""Tells whether a library's work at import goes on in replicas, forked or spawned as expected."""

import asyncio
from dataclasses import replace
from typing import NamedTuple

from servd.controller.plan.targets import THREAD_VARIABLES
from servd.wire.build_messages import BuildOrder
from tests.rooms.replica_room import Room, a_room

REQUESTS = 20
_APP = """
import asyncio
from servd import deployment
{code}

AT_IMPORT = work()

def threads():
    from threadpoolctl import threadpool_info
    counts = {{pool["num_threads"] for pool in threadpool_info()}}
    return sorted(counts | ({{torch.get_num_threads()}} if "torch" in globals() else set()))

class Base:
    def sync(self):
        return work()

    async def on_the_loop(self):
        return work()

    async def on_a_thread(self):
        return await asyncio.to_thread(work)

    async def at_import(self):
        return AT_IMPORT

    async def threads(self):
        return threads()

    def threads_of_sync_handlers(self):
        return threads()

    async def threads_elsewhere(self):
        return await asyncio.to_thread(threads)

@deployment
class Model(Base):
    pass

@deployment
class Warm(Base):
    def __init__(self):
        assert work() == AT_IMPORT

app = Model.bind()
warm_app = Warm.bind()
"""


class Library(NamedTuple):
    """code: of a module, defines `work()`, whose result is the same each time. spawned: part of the reason, "" if forked.

    threads: that the replica shall have, 0 = as the import.
    """

    name: str
    code: str
    spawned: str = ""
    threads: int = 0


async def works_in_replicas(library: Library, *, is_preloaded: bool = False) -> None:
    """Work at import, then in replicas, 20 requests at once in each kind of handler: the same results, no hang.

    Args:
        is_preloaded: there is work in the constructor too, which a template has run before replicas are forked.
    """
    async with a_room() as room:
        room.write(libraryapp=_APP.format(code=library.code))
        if is_preloaded:
            await _works_in(room, library, "Warm", room.order("libraryapp:warm_app", preload="Warm"))
        else:
            await _works_in(room, library, "Model", room.order("libraryapp:app"))


async def _works_in(room: Room, library: Library, name: str, order: BuildOrder) -> None:
    hello = await room.open_fork_server(order)
    assert hello.result is not None
    assert hello.result.error == ""
    reason = hello.result.fork_unsafe
    assert library.spawned in reason
    assert bool(library.spawned) == bool(reason), reason
    start = room.start_of(name)
    if library.threads:
        start = replace(start, default_variables=dict.fromkeys(THREAD_VARIABLES, str(library.threads)))
    if reason:
        room.spawn(start, replace(order, preload=""))
    else:
        assert (await room.fork(start)).error == ""
    report = await room.report(start.replica_id, lambda r: r.phase in ("running", "failed"))
    assert report.error == ""
    room.route(start)
    expected = await room.call(name, "at_import")
    for method in ("sync", "on_the_loop", "on_a_thread"):
        found = await asyncio.gather(*(room.call(name, method) for _ in range(REQUESTS)))
        assert found == [expected] * REQUESTS
    if library.threads:
        for method in ("threads", "threads_of_sync_handlers", "threads_elsewhere"):
            assert await room.call(name, method) == [library.threads], method
