"""The model as an ASGI application for gunicorn, whose `--preload` loads it before the workers are forked."""

import bench_models
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

model = bench_models.load()


async def answer(request: Request) -> PlainTextResponse:  # noqa: ARG001 - Starlette passes it
    """On the worker's loop: one request at a time, as the others have it."""
    return PlainTextResponse(bench_models.answer(model))


app = Starlette(routes=[Route("/", answer)])
