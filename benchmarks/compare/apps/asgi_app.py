"""The handlers as ASGI applications: what uvicorn and Hypercorn serve, and the FastAPI application of servd and Ray Serve."""

from collections.abc import AsyncIterator

from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

CHUNKS = 100
CHUNK = b"x" * 100

fastapi_app = FastAPI()


@fastapi_app.get("/")
async def root() -> str:
    """The no-op of the FastAPI case."""
    return "hello"


@fastapi_app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    """Every message back."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def hello(request: Request) -> PlainTextResponse:  # noqa: ARG001 - Starlette passes it
    """The no-op."""
    return PlainTextResponse("hello")


async def json_echo(request: Request) -> JSONResponse:
    """The JSON value back."""
    return JSONResponse(await request.json())


async def length(request: Request) -> PlainTextResponse:
    """How many bytes came."""
    return PlainTextResponse(str(len(await request.body())))


_DOWNLOADS: dict[int, bytes] = {}


async def download(request: Request) -> Response:
    """As many bytes as the query asks for."""
    size = int(request.query_params["bytes"])
    if size not in _DOWNLOADS:
        _DOWNLOADS[size] = bytes(size)
    return Response(_DOWNLOADS[size], media_type="application/octet-stream")


async def chunks() -> AsyncIterator[bytes]:
    """A short stream."""
    for _ in range(CHUNKS):
        yield CHUNK


async def stream(request: Request) -> StreamingResponse:  # noqa: ARG001 - Starlette passes it
    """A streamed answer."""
    return StreamingResponse(chunks(), media_type="text/plain")


starlette_app = Starlette(
    routes=[
        Route("/", hello),
        Route("/json", json_echo, methods=["POST"]),
        Route("/length", length, methods=["POST"]),
        Route("/download", download),
        Route("/stream", stream),
    ]
)
