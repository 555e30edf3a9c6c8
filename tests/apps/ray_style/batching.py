"""Dynamic batching."""

from typing import List

import numpy as np
from ray import serve
from starlette.requests import Request


@serve.deployment(max_concurrent_queries=64)
class BatchAdder:
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.5)
    async def handle_batch(self, requests: List[Request]):
        numbers = np.array([int(request.query_params["number"]) for request in requests])
        return [{"sum": int(n), "batch": len(requests)} for n in numbers + 1]

    def reconfigure(self, user_config: dict):
        self.handle_batch.set_max_batch_size(user_config["max_batch_size"])
        self.handle_batch.set_batch_wait_timeout_s(user_config["batch_wait_timeout_s"])

    async def __call__(self, request: Request):
        return await self.handle_batch(request)


app = BatchAdder.bind()
