"""Reads handwritten digits with scikit-learn: single requests in, batches to the model, replicas by load.

Trained while the module is imported, once: replicas are forked from the process that did it and share its memory.

curl -X POST --data-binary @image.json http://127.0.0.1:8000/     # 64 numbers from 0 to 16, row by row
"""

import asyncio
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from starlette.requests import Request
from starlette.responses import JSONResponse

from servd import batch, deployment

PIXELS = 64

_digits = load_digits()
model = make_pipeline(StandardScaler(), SVC()).fit(_digits.data, _digits.target)


@deployment(
    max_concurrent_queries=64,
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": 4,
        "target_num_ongoing_requests_per_replica": 4,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 30,
    },
)
class Digits:
    """Answers `{"digit": 7}` for the 64 numbers of an image."""

    async def __call__(self, request: Request) -> dict[str, int] | JSONResponse:
        try:
            image = np.asarray(await request.json(), dtype=float).reshape(PIXELS)
        except (TypeError, ValueError) as error:
            return JSONResponse({"error": f"an image is a list of {PIXELS} numbers: {error}"}, 400)
        return {"digit": await self.read(image)}

    @batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def read(self, images: list[Any]) -> list[int]:
        """The digit on each image, shape (64,) each."""
        # beside the loop, which takes the next requests meanwhile
        found = await asyncio.to_thread(model.predict, np.stack(images))
        return [int(digit) for digit in found]


app = Digits.bind()
