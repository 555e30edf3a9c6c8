"""Run as `python -m tests.engines.asking` in the network of a cluster: sends what its input says, prints what came back.

The input: `do`, the name of a function below, `port`, and that function's arguments. An ask has `path`, and maybe `verb`,
`body` and `headers`.
"""

import asyncio
import json
import sys
from typing import Any

import httpx

LIMIT_S = 120.0
Ask = dict[str, Any]


class Asking:
    """Asks the data plane at `port`."""

    def __init__(self, port: int) -> None:
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

    async def _answer(self, ask: Ask) -> list[Any]:
        body = ask.get("body")
        answer = await self._client.request(
            ask.get("verb", "GET" if body is None else "POST"),
            ask["path"],
            content=None if body is None else body.encode("latin-1"),
            # the id that an answer may name
            headers={"x-request-id": "asking", **ask.get("headers", {})},
        )
        return [answer.status_code, answer.headers.get("content-type", ""), answer.content.decode("latin-1")]


async def main(order: dict[str, Any]) -> Any:
    return await getattr(Asking(order.pop("port")), order.pop("do"))(**order)


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
