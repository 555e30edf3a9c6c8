"""The model as a mosec worker; mosec answers POST alone. BENCH_FORK: load it once, and fork the workers from there."""

import os

import bench_models
from mosec import Server, Worker

IS_FORKED = os.environ.get("BENCH_FORK") == "1"
shared = bench_models.load() if IS_FORKED else None


class Model(Worker):
    """Bytes in, bytes out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = shared or bench_models.load()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:  # noqa: ARG002 - mosec passes it
        return bench_models.answer(self.model).encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=int(os.environ["BENCH_WORKERS"]), start_method="fork" if IS_FORKED else "spawn")
    server.run()
