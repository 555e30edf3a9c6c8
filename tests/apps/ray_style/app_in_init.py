"""A class that changes its FastAPI application in its constructor, and a module that does so after the class."""

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse
from ray import serve

app = FastAPI()
late = APIRouter(prefix="/late")


class Unknown(Exception):
    pass


@serve.deployment
@serve.ingress(app)
class Store:
    def __init__(self, name: str) -> None:
        self.name = name
        app.add_api_route("/name", self.read_name)
        router = APIRouter(prefix="/router")
        router.add_api_route("/name", self.read_name)
        app.include_router(router)
        inner = FastAPI()
        inner.add_api_route("/name", self.read_name)
        app.mount("/inner", inner)

        @app.middleware("http")
        async def stamp(request: Request, call_next):
            response = await call_next(request)
            response.headers["x-stamp"] = self.name
            return response

        @app.exception_handler(Unknown)
        async def unknown(request: Request, error: Unknown) -> PlainTextResponse:
            return PlainTextResponse(self.name, 418)

    async def read_name(self) -> str:
        return self.name

    @app.get("/raising")
    def raising(self) -> None:
        raise Unknown


@late.get("/name")
def late_name() -> str:
    return "late"


app.include_router(late)

store = Store.bind("store")
