"""The model as a LitServe API: `python litserve_models.py PORT WORKERS`; LitServe answers POST with JSON."""

import sys
from typing import Any

import bench_models
import litserve
from fastapi import Request


class Model(litserve.LitAPI):
    """Loads the model in each worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it
        self.model = bench_models.load()

    def decode_request(self, request: Request) -> Any:
        return request

    def predict(self, x: Any) -> str:  # noqa: ARG002 - LitServe passes it
        return bench_models.answer(self.model)

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(Model(api_path="/"), accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
