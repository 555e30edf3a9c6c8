"""A replica that has offered a slot and is told to leave before the slot is claimed."""

import asyncio

from servd.calls.pickling import dumps, loads
from servd.calls.request_context import NO_REQUEST
from tests.fakes import Room


async def test_what_claims_a_slot_of_a_replica_that_has_ended_goes_elsewhere() -> None:
    is_free = asyncio.Event()
    begun: list[str] = []

    def a_replica(name: str) -> str:
        async def work() -> str:
            begun.append(name)
            await is_free.wait()
            return name

        return room.replica(methods={"work": work}, limit=1)

    async with Room() as room:
        old = a_replica("old")
        room.route(old)
        nothing = dumps(((), {}))
        first = room.caller.submit_call("app_Echo", "work", nothing, NO_REQUEST)
        second = room.caller.submit_call("app_Echo", "work", nothing, NO_REQUEST)
        leaving = room.servers[old]
        async with asyncio.timeout(10):
            while not leaving.admission.tickets:
                await asyncio.sleep(0)
            is_free.set()
            # the offer is on its way from here on
            while not leaving.admission.held:
                await asyncio.sleep(0)
            leaving.drain()
            await leaving.wait_idle()
            # where an instance is closed, which takes a while
            room.route(a_replica("new"))
            assert [loads(await first), loads(await second)] == ["old", "new"]
    assert begun == ["old", "new"]
