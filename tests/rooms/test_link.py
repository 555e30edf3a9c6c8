import asyncio
import os
import select
from collections.abc import AsyncIterator
from typing import Any

import pytest

from servd.ground.clock import SystemClock
from servd.wire.caller_link import CallerLink, LinkWatch
from servd.wire.link import HOLD_S, MAX_RECORDS, Peer, ReplicaLink
from tests.fakes import new_address, wait_until

LINKS = 20


@pytest.fixture
async def watch() -> AsyncIterator[LinkWatch]:
    made = LinkWatch(asyncio.get_running_loop())
    yield made
    made.close()


async def test_many_records_of_one_turn_leave_in_several_envelopes_in_their_order(watch: LinkWatch) -> None:
    loop = asyncio.get_running_loop()
    address = new_address()
    asked: list[list[int]] = []
    answered: list[list[int]] = []

    def answer(peer: Peer, records: list[Any], _: list[Any]) -> None:
        asked.append([number for _, number in records[1:]])
        for record in records[1:]:
            peer.send(record)

    replica = ReplicaLink(loop, address, answer, lambda _: None)
    caller = CallerLink(
        watch,
        address,
        lambda records, _: answered.append([number for _, number in records[1:]]),
        lambda _: asked.append([-1]),
    )
    try:
        numbers = list(range(2 * MAX_RECORDS + 3))
        for number in numbers:
            caller.send((0, number))
        await wait_until(lambda: sum(map(len, answered)) == len(numbers))
        # one call comes back only after everything before it
        caller.send((0, -2))
        await wait_until(lambda: answered[-1] == [-2])
        for envelopes in (asked, answered):
            assert [number for envelope in envelopes for number in envelope] == [*numbers, -2]
        assert max(map(len, asked)) == MAX_RECORDS
        assert all(asked), "no envelope is empty"
    finally:
        caller.close()
        replica.close()


async def test_a_caller_that_went_is_noticed_without_anything_to_send(watch: LinkWatch) -> None:
    loop = asyncio.get_running_loop()
    address = new_address()
    gone: list[Peer] = []
    replica = ReplicaLink(loop, address, lambda *_: None, gone.append)
    caller = CallerLink(watch, address, lambda *_: None, lambda _: None)
    try:
        caller.send((0, 1))
        await wait_until(lambda: bool(replica.peers))
        caller.close()
        await wait_until(lambda: len(gone) == 1)
        assert not replica.peers
    finally:
        caller.close()
        replica.close()


async def test_what_was_answered_early_in_a_long_turn_does_not_wait_for_its_end(watch: LinkWatch) -> None:
    loop = asyncio.get_running_loop()
    address = new_address()
    came: list[list[int]] = []
    peers: list[Peer] = []
    replica = ReplicaLink(loop, address, lambda peer, *_: peers.append(peer), lambda _: None)
    caller = CallerLink(watch, address, lambda records, _: came.append([n for _, n in records[1:]]), lambda _: None)
    try:
        caller.send((0, 0))
        await wait_until(lambda: bool(peers))
        clock = SystemClock()
        for number in range(4):
            peers[0].send((0, number))
            # a handler that computes
            end = clock.now() + HOLD_S
            while clock.now() <= end:
                pass
        await wait_until(lambda: [number for envelope in came for number in envelope] == [0, 1, 2, 3])
        assert len(came) > 1
    finally:
        caller.close()
        replica.close()


async def test_what_comes_while_callers_are_probed_is_taken_in(watch: LinkWatch) -> None:
    loop = asyncio.get_running_loop()
    address = new_address()
    came: list[int] = []
    replica = ReplicaLink(
        loop, address, lambda _, records, __: came.extend(number for _, number in records[1:]), lambda _: None
    )
    caller = CallerLink(watch, address, lambda *_: None, lambda _: None)
    try:
        caller.send((0, 1))
        await wait_until(lambda: came == [1])
        caller.send((0, 2))
        caller._flush()
        # it is there, and the loop has not heard of it yet
        assert select.select([replica._socket.FD], [], [], 5)[0]
        replica._probe()
        await wait_until(lambda: came == [1, 2])
    finally:
        caller.close()
        replica.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_each_loss_is_told_to_its_own_link(watch: LinkWatch) -> None:
    loop = asyncio.get_running_loop()
    addresses = [new_address() for _ in range(4)]
    heard: set[int] = set()
    lost: list[int] = []
    replicas = [
        ReplicaLink(loop, address, lambda peer, *_: peer.send((0,)), lambda _: None) for address in addresses[:3]
    ]
    links = [
        CallerLink(watch, address, lambda *_, n=n: heard.add(n), lambda _, n=n: lost.append(n))  # type: ignore[misc]
        for n, address in enumerate(addresses)
    ]
    try:
        for link in links:
            link.send((0,))
        await wait_until(lambda: heard == {0, 1, 2} and lost == [3])
        replicas[1].close()
        await wait_until(lambda: lost == [3, 1])
        # what one of them says no longer reaches nobody
        links[0].send((0,))
        links[0].close()
        heard.clear()
        links[2].send((0,))
        await wait_until(lambda: heard == {2})
        replicas[2].close()
        replicas[0].close()
        await wait_until(lambda: lost == [3, 1, 2])
    finally:
        for link in links:
            link.close()
        for replica in replicas:
            replica.close()


async def test_a_watch_that_is_closed_before_its_links_stops_nobody_elses() -> None:
    loop = asyncio.get_running_loop()
    heard: list[int] = []
    addresses = [new_address(), new_address()]
    replicas = [ReplicaLink(loop, address, lambda peer, *_: peer.send((0,)), lambda _: None) for address in addresses]
    watches = [LinkWatch(loop), LinkWatch(loop)]
    links = [
        CallerLink(watch, address, lambda *_, n=n: heard.append(n), lambda _: None)  # type: ignore[misc]
        for n, (watch, address) in enumerate(zip(watches, addresses, strict=True))
    ]
    for link in links:
        link.send((0,))
    await wait_until(lambda: sorted(heard) == [0, 1])
    watches[0].close()
    replicas[0].close()
    for _ in range(20):
        heard.clear()
        links[1].send((0,))
        await wait_until(lambda: heard == [1])
    for link in links:
        link.close()
    watches[1].close()
    replicas[1].close()


async def test_a_link_takes_three_descriptors_and_gives_them_back(watch: LinkWatch) -> None:
    loop = asyncio.get_running_loop()
    addresses = [new_address() for _ in range(LINKS)]
    heard: list[int] = []
    replicas = [ReplicaLink(loop, address, lambda peer, *_: peer.send((0,)), lambda _: None) for address in addresses]
    first = CallerLink(watch, addresses[0], lambda *_: heard.append(0), lambda _: None)
    first.send((0,))
    await wait_until(lambda: len(heard) == 1)
    before = open_fds()
    links = [CallerLink(watch, address, lambda *_: heard.append(0), lambda _: None) for address in addresses[1:]]
    for link in links:
        link.send((0,))
    await wait_until(lambda: len(heard) == LINKS)
    held = open_fds()
    # one more is the replica's, which lives here too; sockets of earlier tests may close meanwhile
    assert held - before <= 4 * len(links)
    for link in links:
        link.close()
    await wait_until(lambda: held - open_fds() >= 4 * len(links))
    first.close()
    for replica in replicas:
        replica.close()
