"""An ASGI ingress called through a handle: a Request in, a Response out."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

Asgi = Callable[..., Awaitable[None]]


async def call_with_request(app: Asgi, request: Request) -> Response:
    """The application's whole response to a request that came through a handle.

    Raises:
        TypeError: the argument is no Request.
    """
    if not isinstance(request, Request):
        raise TypeError(f"an ASGI ingress is called with a Request, got {type(request).__name__}")
    answer = Response()
    body = bytearray()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status_code = message["status"]
            answer.raw_headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    await app(request.scope, request.receive, send)
    answer.body = bytes(body)
    return answer
