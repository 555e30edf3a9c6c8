"""What waits for an application costs what it is, small pieces and empty messages too."""

import asyncio
from typing import Any

from servd.proxy.app_queue import ROOM_BYTES, AppQueue


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
