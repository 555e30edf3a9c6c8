"""The handlers as LitServe APIs: `python litserve_app.py PORT NAME...`; LitServe answers POST with JSON."""

import sys
from typing import Any

import litserve
from fastapi import Request

CHUNKS = 100
CHUNK = "x" * 100


class Noop(litserve.LitAPI):
    """A word."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: Request) -> Any:
        return request

    def predict(self, x: Any) -> Any:  # noqa: ARG002 - LitServe passes it
        return "hello"

    def encode_response(self, output: Any) -> Any:
        return output


class Json(Noop):
    """The JSON value back."""

    def predict(self, x: Any) -> Any:
        return x


class Stream(Noop):
    """A streamed answer."""

    def predict(self, x: Any) -> Any:  # noqa: ARG002 - LitServe passes it
        for _ in range(CHUNKS):
            yield CHUNK

    def encode_response(self, output: Any) -> Any:
        yield from output


APIS = {
    "noop": lambda: Noop(api_path="/noop"),
    "json": lambda: Json(api_path="/json"),
    "stream": lambda: Stream(api_path="/stream", stream=True),
}

if __name__ == "__main__":
    port, *names = sys.argv[1:]
    server = litserve.LitServer([APIS[name]() for name in names], accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=2, log_level="warning", generate_client_file=False)
