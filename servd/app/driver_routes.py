"""A FastAPI application for drivers whose adapter has parameters: FastAPI finds their values in the request."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from starlette.responses import Response

Runner = Callable[[Any], Awaitable[Response]]


def driver_app(runners: Mapping[str, Runner], adapter: Callable[..., Any], verbs: tuple[str, ...]) -> FastAPI:
    """The application that answers each route with its runner's response to what the adapter gives."""
    # a body without content type is JSON, as it was in the era of these adapters
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, strict_content_type=False)
    for route, runner in runners.items():
        app.add_api_route(route, _endpoint(runner, adapter), methods=list(verbs), response_model=None)
    return app


def _endpoint(runner: Runner, adapter: Callable[..., Any]) -> Callable[..., Awaitable[Response]]:
    async def endpoint(source: Annotated[Any, Depends(adapter)]) -> Response:
        return await runner(source)

    return endpoint
