"""The loop of a process that runs user code goes on when a task or a callback wants to end the interpreter."""

import asyncio
import ctypes
import gc
import mmap
import socket
import struct
import sys

import pytest

from servd.ground.event_loop import give_back_zeros, lifelong, load, run


async def leave(kind: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise kind(3)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_task_that_leaves_fails_whoever_awaits_it(kind: type[BaseException]) -> None:
    async def main() -> str:
        others = [asyncio.create_task(asyncio.sleep(0, number)) for number in range(20)]
        with pytest.raises(kind):
            await asyncio.gather(leave(kind))
        with pytest.raises(kind):
            async with asyncio.TaskGroup() as group:
                group.create_task(leave(kind))
        assert await asyncio.gather(*others) == list(range(20))
        return "went on"

    told: list[BaseException] = []
    assert run(main(), on_exit=told.append) == "went on"
    assert {type(error) for error in told} == {kind}


def test_a_callback_that_leaves_is_told() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        for _ in range(3):
            await asyncio.sleep(0)

    told: list[BaseException] = []
    run(main(), on_exit=told.append)
    assert [str(error) for error in told] == ["3"]


def test_what_main_raises_ends_the_loop() -> None:
    with pytest.raises(SystemExit):
        run(leave(SystemExit), on_exit=lambda _: None)
    with pytest.raises(SystemExit):
        run(leave(SystemExit))


@pytest.mark.parametrize("searches", [True, False])
async def test_loading_a_module_leaves_the_garbage_collector_as_it_was(searches: bool) -> None:
    try:
        if not searches:
            gc.disable()
        assert await load("json") is sys.modules["json"]
        assert gc.isenabled() == searches
    finally:
        gc.enable()


def test_pages_of_zeros_are_given_back_and_others_stay() -> None:
    pages = 8
    with mmap.mmap(-1, pages * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        held = ctypes.c_char.from_buffer(area)
        area[:] = bytes(len(area))
        address = ctypes.addressof(held)
        area[3 * mmap.PAGESIZE + 5] = 7
        give_back_zeros(address, len(area))
        assert pages_of(address, pages) == pages
        area[3 * mmap.PAGESIZE + 5] = 0
        # what is only half inside is left alone
        give_back_zeros(address + 1, len(area) - 2)
        assert pages_of(address, pages) == 2
        assert not any(area[:])
        del held


def pages_of(address: int, count: int) -> int:
    """How many of these pages there is memory for."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // mmap.PAGESIZE * 8)
        return sum(entry >> 63 for (entry,) in struct.iter_unpack("<Q", file.read(count * 8)))


def test_a_loop_reads_as_much_as_ever() -> None:
    sent = bytes(range(256)) * 4096

    async def main() -> None:
        found = bytearray()
        ended = asyncio.Event()

        class Reader(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                found.extend(data)
                if len(found) == len(sent):
                    ended.set()

        here, there = socket.socketpair()
        loop = asyncio.get_running_loop()
        here.setblocking(False)
        transport, _ = await loop.create_connection(Reader, sock=there)
        await loop.sock_sendall(here, sent)
        await asyncio.wait_for(ended.wait(), 10)
        transport.close()
        here.close()
        assert found == sent

    run(main())


@pytest.mark.parametrize("way", ["fails", "ends", "is cancelled"])
def test_what_shall_live_long_says_that_it_failed(way: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        if way == "fails":
            raise ValueError("no more")
        if way == "is cancelled":
            await asyncio.Event().wait()

    async def main() -> None:
        task = lifelong(work(), lambda: failed.append(way))
        for _ in range(2):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    failed: list[str] = []
    run(main())
    assert failed == (["fails"] if way == "fails" else [])
    assert ("task_failed" in caplog.text and "no more" in caplog.text) == (way == "fails")
