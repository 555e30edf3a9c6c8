#!/bin/bash
# Guess, before running: a StreamingResponse whose generator raises after its first piece breaks off, behind a BaseHTTPMiddleware
# that hands everything on as without one, so that the server can let the client see that something is missing.
# Seen (starlette 1.10.0, anyio 4.16.0): without the middleware the last message is the piece, then the error is raised. Behind it
# the application first sends an empty last piece (more_body false) and raises afterwards: for the server, and for the client, the
# short body is whole.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q starlette==1.10.0 anyio==4.16.0 2>/dev/null
cat > "$directory/streams.py" <<'CODE'
import asyncio
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def pieces():
    yield b"first"
    raise ValueError("in the middle")


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(pieces())


async def hand_on(request: Request, call_next):
    return await call_next(request)


async def sent_by(app: Starlette) -> list:
    sent = []

    async def receive():
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            sent.append((message.get("body", b""), message.get("more_body", False)))

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": "/",
             "raw_path": b"/", "root_path": "", "query_string": b"", "headers": [], "client": None, "server": None}
    try:
        await app(scope, receive, send)
    except ValueError as error:
        sent.append(str(error))
    return sent


print("starlette", version("starlette"), "anyio", version("anyio"))
routes = [Route("/", stream)]
alone = asyncio.run(sent_by(Starlette(routes=routes)))
behind = asyncio.run(sent_by(Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=hand_on)])))
print("alone:", alone)
print("behind a middleware:", behind)
assert alone == [(b"first", True), "in the middle"]
assert behind == [(b"first", True), (b"", False), "in the middle"]
CODE
"$directory/venv/bin/python" "$directory/streams.py"
