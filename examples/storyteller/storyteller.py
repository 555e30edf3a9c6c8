"""Writes text word by word: the shape of a language model's service, with a model that needs no download.

The model is a table of which word follows which two, made at import from the manual that is part of Python. Requests that
come together are generated together, one word each per step; each of them streams and ends by itself.

curl -N 'http://127.0.0.1:8000/?prompt=the+function&words=40'
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator
from pydoc_data.topics import topics
from typing import Annotated

from fastapi import FastAPI, Query
from starlette.responses import StreamingResponse

from servd import batch, deployment, ingress

api = FastAPI(title="Storyteller")

_words = " ".join(topics.values()).split()
follow: dict[tuple[str, str], list[str]] = defaultdict(list)
for first, second, third in zip(_words, _words[1:], _words[2:], strict=False):
    follow[first, second].append(third)
# where a prompt is too short to go on from
starts = list(follow)


@deployment(max_concurrent_queries=32)
@ingress(api)
class Storyteller:
    """Streams `words` words that go on from `prompt`."""

    @api.get("/")
    async def write(self, prompt: str = "", words: Annotated[int, Query(ge=1, le=1000)] = 50) -> StreamingResponse:
        """Begins to answer with the first word."""
        return StreamingResponse(self.text(prompt.split(), words), media_type="text/plain")

    async def text(self, prompt: list[str], count: int) -> AsyncGenerator[str, None]:
        """The prompt, then the words as they come."""
        if prompt:
            yield " ".join(prompt)
        async for word in self.generate(prompt, count):
            yield f" {word}"

    @batch(max_batch_size=16, batch_wait_timeout_s=0.01, max_concurrent_batches=4)
    async def generate(self, prompts: list[list[str]], counts: list[int]) -> AsyncGenerator[list[object], None]:
        """One word per step for each prompt, until all have got their count."""
        pairs = [_pair(prompt) for prompt in prompts]
        for step in range(max(counts)):
            found: list[object] = []
            for number, pair in enumerate(pairs):
                word = random.choice(follow.get(pair) or _words)
                pairs[number] = (pair[1], word)
                found.append(word if step < counts[number] else StopIteration())
            yield found
            # where a model would compute: other requests go on
            await asyncio.sleep(0)


def _pair(prompt: list[str]) -> tuple[str, str]:
    """The last two words, as far as the model knows them."""
    known = tuple(prompt[-2:])
    return (known[0], known[1]) if len(known) == 2 else random.choice(starts)


app = Storyteller.bind()
