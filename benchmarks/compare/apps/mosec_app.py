"""The handlers as mosec workers; mosec answers POST alone, and its handlers are plain functions."""

import os
from typing import Any

from mosec import Runtime, Server, SSEWorker, Worker

CHUNKS = 100
CHUNK = "x" * 100


class Raw(Worker):
    """Bytes in, bytes out: the fastest form mosec has."""

    def deserialize(self, data: bytes) -> Any:
        return data

    def serialize(self, data: Any) -> bytes:
        return data


class Noop(Raw):
    """A word."""

    def forward(self, data: bytes) -> bytes:  # noqa: ARG002 - mosec passes it
        return b"hello"


class NoopBatch(Raw):
    """A word for each of a batch."""

    def forward(self, data: list[bytes]) -> list[bytes]:
        return [b"hello"] * len(data)


class Json(Worker):
    """The JSON value back, in mosec's own encoding."""

    def forward(self, data: Any) -> Any:
        return data


class Length(Raw):
    """How many bytes came."""

    def forward(self, data: bytes) -> bytes:
        return str(len(data)).encode()


class Download(Raw):
    """As many bytes as the body asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, bytes] = {}

    def forward(self, data: bytes) -> bytes:
        size = int(data)
        if size not in self.made:
            self.made[size] = bytes(size)
        return self.made[size]


class First(Raw):
    """The first of two stages."""

    def forward(self, data: bytes) -> bytes:
        return data


class Second(Raw):
    """The second of two stages."""

    def forward(self, data: bytes) -> bytes:  # noqa: ARG002 - mosec passes it
        return b"hello"


class Stream(SSEWorker):
    """A stream of events."""

    def deserialize(self, data: bytes) -> Any:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        for index in range(len(data)):
            for _ in range(CHUNKS):
                self.send_stream_event(CHUNK, index=index)
        return data


ROUTES = {
    "noop": lambda: [Runtime(Noop)],
    "batch": lambda: [Runtime(NoopBatch, max_batch_size=64, max_wait_time=1)],
    "json": lambda: [Runtime(Json)],
    "body": lambda: [Runtime(Length)],
    "download": lambda: [Runtime(Download)],
    "compose": lambda: [Runtime(First), Runtime(Second)],
    "stream": lambda: [Runtime(Stream, max_batch_size=8)],
}

if __name__ == "__main__":
    server = Server()
    server.register_runtime({f"/{name}": ROUTES[name]() for name in os.environ["BENCH_APPS"].split(",")})
    server.run()
