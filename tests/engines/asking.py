"""Run as `python -m tests.engines.asking` in the network of a cluster: sends what its input says, prints what came back.

The input: `do`, the name of a function below, `port`, and that function's arguments. An ask has `path`, and maybe `verb`,
`body` and `headers`; or `say`, for what is sent over a WebSocket.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import websockets

LIMIT_S = 120.0
Ask = dict[str, Any]


class Asking:
    """Asks the data plane at `port`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=LIMIT_S,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def in_turn(self, asks: list[Ask]) -> list[Any]:
        """[status, content type, body] of each, one after the other."""
        return [await self._answer(ask) for ask in asks]

    async def at_once(self, asks: list[Ask]) -> list[Any]:
        """The same, all together."""
        return list(await asyncio.gather(*map(self._answer, asks)))

    async def pressed(self, path: str, count: int, refused: int, began: str, go: str) -> list[int]:
        """Statuses of one request that has begun, which makes the file `began`, and of `count` others after it.

        The file `go`, which lets them end, is made once `refused` of them are answered.
        """
        first = asyncio.create_task(self._answer({"path": path}))
        await _until(lambda: os.path.exists(began))
        others = [asyncio.create_task(self._answer({"path": path})) for _ in range(count)]
        await _until(lambda: sum(one.done() for one in others) == refused)
        Path(go).touch()
        return [status for status, *_ in await asyncio.gather(first, *others)]

    async def meanwhile(self, path: str, until: str) -> list[Any]:
        """[status, body, seconds] of requests one after the other, each over a connection of its own, until a file is there."""
        found = []
        while not os.path.exists(until):
            began = time.monotonic()
            async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
                answer = await client.get(f"http://127.0.0.1:{self._port}{path}")
            found.append([answer.status_code, answer.text, time.monotonic() - began])
        return found

    async def leave(self, path: str, began: str) -> None:
        """Send a request and hang up once the file is there."""
        request = asyncio.create_task(self._answer({"path": path}))
        await _until(lambda: os.path.exists(began))
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await self._client.aclose()

    async def _answer(self, ask: Ask) -> list[Any]:
        if "say" in ask:
            return await self._heard(ask)
        body = ask.get("body")
        answer = await self._client.request(
            ask.get("verb", "GET" if body is None else "POST"),
            ask["path"],
            content=None if body is None else body.encode("latin-1"),
            # the id that an answer may name
            headers={"x-request-id": "asking", **ask.get("headers", {})},
        )
        return [answer.status_code, answer.headers.get("content-type", ""), answer.content.decode("latin-1")]

    async def _heard(self, ask: Ask) -> list[Any]:
        """Close code, its reason, and what was heard; a binary message as a list of its bytes."""
        heard: list[Any] = []
        url = f"ws://127.0.0.1:{self._port}{ask['path']}"
        async with websockets.connect(url, subprotocols=ask.get("subprotocols"), proxy=None) as socket:
            heard.append(socket.subprotocol)
            for text in ask["say"]:
                await socket.send(bytes(text) if isinstance(text, list) else text)
            with contextlib.suppress(websockets.ConnectionClosedError):
                async for message in socket:
                    heard.append(list(message) if isinstance(message, bytes) else message)
        return [socket.close_code, socket.close_reason, heard]


async def _until(fact: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not fact():  # noqa: ASYNC110 - files of other processes
            await asyncio.sleep(0.01)


async def main(order: dict[str, Any]) -> Any:
    return await getattr(Asking(order.pop("port")), order.pop("do"))(**order)


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
