"""What reviews say, with every call checked: `mypy --strict` and pyright know what each deployment takes and gives."""

from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from servd import batch, deployment, ingress
from servd.handle import DeploymentHandle

api = FastAPI(title="Reviews")


class Scorer:
    """Counts good words against bad ones."""

    def __init__(self, good: list[str], bad: list[str], *, weight: float = 1.0) -> None:
        self.weights = dict.fromkeys(good, weight) | dict.fromkeys(bad, -weight)

    @batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def score(self, texts: list[str]) -> list[float]:
        return [sum(self.weights.get(word, 0.0) for word in text.lower().split()) for text in texts]

    async def telling(self, text: str) -> AsyncGenerator[str, None]:
        for word in text.lower().split():
            if word in self.weights:
                yield word


@ingress(api)
class Reviews:
    """The routes."""

    def __init__(self, scorer: DeploymentHandle[Scorer]) -> None:
        self.score = scorer.options(method_name=Scorer.score)
        self.telling = scorer.options(method_name=Scorer.telling, stream=True)

    @api.get("/score")
    async def show_score(self, text: str) -> dict[str, float]:
        return {"score": await self.score.remote(text)}

    @api.get("/words")
    async def show_words(self, text: str) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for word in self.telling.remote(text):
                yield f"{word}\n"

        return StreamingResponse(lines(), media_type="text/plain")


scorer = deployment(num_replicas=2)(Scorer).bind(["good", "great"], ["bad", "awful"], weight=2.0)
app = deployment(Reviews).bind(scorer)
