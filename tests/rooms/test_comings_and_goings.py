"""No call is lost, whatever order the news of replicas, their offers and their ends come in."""

import asyncio
import random

import pytest

from servd.calls.caller import Caller
from servd.calls.pickling import dumps, loads
from servd.calls.request_context import NO_REQUEST
from servd.replica.server import ReplicaServer
from tests.fakes import Room, a_caller, routing_for, targets_for, wait_until

LIMIT_S = 20.0
CHANGES = 40
ASKING = 10
CALLS = 60
_LINGER_S = 2.0


class Fleet:
    """Replicas of one deployment that come and go, and processes that call them and hear of it at different times."""

    def __init__(self, room: Room, rng: random.Random) -> None:
        self._room = room
        self._rng = rng
        self.callers = [room.caller, a_caller(), a_caller()]
        self._live: list[str] = []
        self._leaving: list[asyncio.Task[None]] = []
        self._generation = 0

    async def come(self) -> None:
        rng = self._rng

        async def work(number: int) -> int:
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.004]))
            return number

        self._live.append(self._room.replica(methods={"work": work}, limit=rng.randint(1, 3)))
        await self._tell()

    async def go(self) -> None:
        """One leaves: as a rule once everybody has heard of it, as the controller has it, and now and then before."""
        if len(self._live) == 1:
            return
        address = self._live.pop(self._rng.randrange(len(self._live)))
        server = self._room.servers[address]
        if self._rng.random() < 0.2:
            server.drain()
        await self._tell()
        server.drain()
        self._leaving.append(asyncio.create_task(self._end(server)))

    async def gone(self) -> None:
        """All that were told to leave have left."""
        await asyncio.gather(*self._leaving)

    async def _tell(self) -> None:
        self._generation += 1
        targets = targets_for(*self._live)
        for caller in self._rng.sample(self.callers, len(self.callers)):
            caller.apply_routing(routing_for(targets, generation=self._generation))
            await self._turns()

    async def _end(self, server: ReplicaServer) -> None:
        await server.wait_idle()
        # its instance is closed, which takes a while
        await self._turns()
        server.close(_LINGER_S)

    async def _turns(self) -> None:
        for _ in range(self._rng.choice([0, 0, 1, 2, 5])):
            await asyncio.sleep(0)


async def ask(callers: list[Caller], rng: random.Random, first: int) -> None:
    for number in range(first, first + CALLS):
        ticket = rng.choice(callers).submit_call("app_Echo", "work", dumps(((number,), {})), NO_REQUEST)
        assert loads(await ticket) == number


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 100))])
async def test_every_call_is_answered(seed: int) -> None:
    rng = random.Random(seed)
    async with Room() as room, asyncio.timeout(LIMIT_S):
        fleet = Fleet(room, rng)
        await fleet.come()
        asking = [asyncio.create_task(ask(fleet.callers, rng, number * CALLS)) for number in range(ASKING)]
        for _ in range(CHANGES):
            await rng.choice([fleet.come, fleet.go])()
        await asyncio.gather(*asking)
        await fleet.gone()
        await wait_until(lambda: not any(server.ongoing for server in room.servers.values()))
        for other in fleet.callers[1:]:
            other.close()
