"""Replicas that have offered a slot and leave before it is claimed."""

import asyncio
from collections.abc import Callable

from servd.calls.outgoing import CallTicket
from servd.calls.pickling import dumps, loads
from servd.calls.replica_peer import ReplicaPeer
from servd.calls.request_context import NO_REQUEST
from servd.wire.records import OFFER
from tests.fakes import Room

LIMIT_S = 10.0


def a_replica(room: Room, name: str, until: asyncio.Event, limit: int = 2) -> str:
    """One whose calls of `work` say its name at once, and those of `wait` when that has happened; gives its address."""

    async def work() -> str:
        return name

    async def wait() -> str:
        await until.wait()
        return name

    return room.replica(methods={"work": work, "wait": wait}, limit=limit)


def a_call(room: Room, method: str) -> CallTicket:
    return room.caller.submit_call("app_Echo", method, dumps(((), {})), NO_REQUEST)


async def reached(is_so: Callable[[], object]) -> None:
    """Look after every turn of the loop: what an envelope brings takes some."""
    async with asyncio.timeout(LIMIT_S):
        while not is_so():  # noqa: ASYNC110 - the turns are what is waited for
            await asyncio.sleep(0)


async def said(*tickets: CallTicket) -> list[str]:
    async with asyncio.timeout(LIMIT_S):
        return [loads(await ticket) for ticket in tickets]


async def test_what_claims_a_slot_of_a_replica_that_has_ended_goes_elsewhere() -> None:
    is_free = asyncio.Event()
    async with Room() as room:
        address = a_replica(room, "old", is_free, limit=1)
        room.route(address)
        first, second = a_call(room, "wait"), a_call(room, "work")
        old = room.servers[address]
        await reached(room.caller.queued)
        is_free.set()
        # the offer is on its way from here on
        await reached(lambda: old.admission.held)
        old.drain()
        await old.wait_idle()
        # its instance is closed now, which takes a while
        room.route(a_replica(room, "new", is_free))
        assert await said(first, second) == ["old", "new"]


async def test_what_waits_is_sent_to_no_replica_that_is_routed_no_more() -> None:
    is_free = asyncio.Event()
    async with Room() as room:
        address = a_replica(room, "old", is_free, limit=1)
        room.route(address)
        first, second = a_call(room, "wait"), a_call(room, "work")
        await reached(room.caller.queued)
        (candidate,) = room.caller.router_of("app_Echo").candidates
        old: ReplicaPeer = candidate.peer
        room.route(a_replica(room, "new", is_free))
        # an offer that the news of its successor have overtaken
        old._on_records([0, (OFFER, 1)], [])
        is_free.set()
        assert await said(second, first) == ["new", "old"]
