"""What waits for an application costs what it is, small pieces and empty messages too."""

import asyncio
from typing import Any, cast

import pytest

from servd.proxy.app_queue import ROOM_BYTES, AppQueue
from servd.proxy.forwarded_call import ForwardedCall
from servd.proxy.hypercorn.read_size import next_read
from servd.proxy.websocket_form import _Credit
from servd.wire.connection_room import Share

KIB = 1024


def piece(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_pieces_of_a_body_that_wait_are_one_message() -> None:
    queue = AppQueue(is_patient=False)
    for _ in range(1000):
        await queue.put(piece(b"x"))
    await queue.put(piece(b"", more=False))
    await queue.put({"type": "http.disconnect"})
    assert "2 messages" in repr(queue)
    message = await queue.get()
    assert (bytes(message["body"]), message["more_body"]) == (b"x" * 1000, False)
    assert (await queue.get())["type"] == "http.disconnect"


async def test_large_pieces_are_not_copied_together() -> None:
    queue = AppQueue(is_patient=False)
    large = b"x" * 16 * KIB
    for _ in range(3):
        await queue.put(piece(large))
    await queue.put(piece(b"", more=False))
    assert [(await queue.get())["body"] is large for _ in range(2)] == [True, True]
    last = await queue.get()
    assert last["body"] is large
    assert not last["more_body"]
    assert queue.has_room
    assert "0 messages, bytes=0" in repr(queue)


async def test_messages_wait_for_room_although_they_are_empty() -> None:
    queue = AppQueue()
    count = 0

    async def flood() -> None:
        nonlocal count
        while True:
            await queue.put({"type": "websocket.receive", "text": "", "bytes": None})
            count += 1

    flooding = asyncio.create_task(flood())
    await asyncio.sleep(0)
    assert count * 300 <= ROOM_BYTES
    for _ in range(5):
        await queue.get()
        await asyncio.sleep(0)
    assert count * 300 <= ROOM_BYTES + 5 * 500
    flooding.cancel()
    queue.give_up()


@pytest.mark.parametrize(
    ("read_bytes", "took_s", "then"),
    [
        (64 * KIB, 0.001, 64 * KIB),
        (64 * KIB, 0.0, 64 * KIB),
        (64 * KIB, 0.01, 32 * KIB),
        (2 * KIB, 1.0, KIB),
        (0, 0.001, KIB),
    ],
)
def test_what_took_long_is_read_in_smaller_bits(read_bytes: int, took_s: float, then: int) -> None:
    assert next_read(read_bytes, took_s) == then


def test_a_replica_hears_of_many_small_parts_at_once() -> None:
    granted: list[int] = []

    class Replica:
        def grant(self, call: ForwardedCall, size: int) -> None:
            granted.append(size)

    call = ForwardedCall(cast(Any, None), lambda: 0.0, {"client": None}, cast(Any, None), Share())
    call.peer = cast(Any, Replica())
    for _ in range(1000):
        call.take(512)
    call.take(300 * KIB)
    assert granted == [256 * KIB, 488 * 512 + 300 * KIB]


def test_a_websocket_whose_client_left_while_it_waited_does_not_begin() -> None:
    call = ForwardedCall(cast(Any, None), lambda: 0.0, {"client": None}, cast(Any, None), Share())
    call.prepare((b"GET", b"/", b"", [(b"x-request-disconnect-disabled", b"?1")]), 0)
    call.stream = cast(Any, _Credit(call, AppQueue()))
    assert not call.is_abandoned()
    call.tell("disconnect")
    assert call.is_abandoned()
