"""Which route of an application answers a path: the same as its framework says, known from the patterns alone."""

import json
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.convertors import CONVERTOR_TYPES, Convertor
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from servd.app.asgi_routes import MAX_ROUTES, described
from servd.calls.routes.noted import NotedRoutes
from servd.calls.routes.patterns import (
    _MOST_KNOWN,
    HTTP,
    MAX_DEPTH,
    MAX_PATH_LENGTH,
    WEBSOCKET,
    RoutePatterns,
    packed_route,
    unpacked_route,
)
from servd.calls.routes.table import decoded_path
from servd.observability.access_log import Labels
from servd.observability.journal import Note


def shop(tmp_path: Any) -> FastAPI:
    """An application with all kinds of routes; each answers with its own pattern."""
    inner = APIRouter(prefix="/{order}")

    @inner.get("/lines/{line:int}")
    def line() -> str:
        return "/shop/orders/{order}/lines/{line:int}"

    orders = APIRouter(prefix="/orders")
    orders.include_router(inner)

    @orders.get("")
    def all_orders() -> str:
        return "/shop/orders"

    admin = FastAPI()

    @admin.get("/users/{user}")
    def user() -> str:
        return "/admin/{tenant}/users/{user}"

    @admin.get("/")
    def home() -> str:
        return "/admin/{tenant}/"

    app = FastAPI()

    @app.get("/")
    def root() -> str:
        return "/"

    @app.get("/users/me")
    def me() -> str:
        return "/users/me"

    @app.get("/users/{name}")
    def get_user() -> str:
        return "/users/{name}"

    @app.delete("/users/{name}")
    def delete_user() -> str:
        return "/users/{name}"

    @app.get("/files/{path:path}")
    def files() -> str:
        return "/files/{path:path}"

    @app.get("/n/{number:int}")
    def number() -> str:
        return "/n/{number:int}"

    @app.get("/n/{word}")
    def word() -> str:
        return "/n/{word}"

    @app.get("/slash/")
    def slash() -> str:
        return "/slash/"

    @app.get("/a.b+c")
    def odd() -> str:
        return "/a.b+c"

    app.include_router(orders, prefix="/shop")
    app.mount("/admin/{tenant}", admin)
    app.mount("/static", StaticFiles(directory=tmp_path))

    @app.get("/static/more")
    def behind_the_mount() -> str:
        return "never"

    @app.get("/{anything}")
    def anything() -> str:
        return "/{anything}"

    return app


WANTED: list[tuple[str, str, str | None]] = [
    ("GET", "/", "/"),
    ("GET", "/users/me", "/users/me"),
    ("GET", "/users/ann", "/users/{name}"),
    ("DELETE", "/users/ann", "/users/{name}"),
    # a method that no route takes
    ("PUT", "/users/me", None),
    ("DELETE", "/users/me", "/users/{name}"),
    ("GET", "/users/a%20b", "/users/{name}"),
    ("GET", "/users/%C3%A4", "/users/{name}"),
    ("GET", "/users/a%2Fb", None),
    ("GET", "/files/a/b/c.txt", "/files/{path:path}"),
    ("GET", "/n/12", "/n/{number:int}"),
    ("GET", "/n/12x", "/n/{word}"),
    ("GET", "/slash/", "/slash/"),
    ("GET", "/slash", "/{anything}"),
    # the client is sent on
    ("GET", "/users/me/", "/users/me/"),
    ("GET", "/shop/orders/", "/shop/orders/"),
    ("GET", "/a.b+c", "/a.b+c"),
    ("GET", "/aXb+c", "/{anything}"),
    ("GET", "/shop/orders", "/shop/orders"),
    ("GET", "/shop/orders/7/lines/1", "/shop/orders/{order}/lines/{line:int}"),
    ("GET", "/shop/orders/7/lines/x", None),
    ("GET", "/admin/eu/users/ann", "/admin/{tenant}/users/{user}"),
    ("GET", "/admin/eu/", "/admin/{tenant}/"),
    ("GET", "/admin/eu", "/admin/{tenant}"),
    ("GET", "/admin/eu/nothing", None),
    ("GET", "/static/x.css", "/static"),
    # what is mounted before hides it
    ("GET", "/static/more", "/static"),
    ("GET", "/openapi.json", "/openapi.json"),
    ("GET", "/docs", "/docs"),
    ("HEAD", "/docs", "/docs"),
    ("GET", "/other", "/{anything}"),
    ("GET", "/other/path", None),
    ("ODD", "/other", None),
]


@pytest.mark.parametrize(("method", "path", "wanted"), WANTED, ids=[f"{method}-{path}" for method, path, _ in WANTED])
async def test_the_route_is_the_one_that_answers(tmp_path: Any, method: str, path: str, wanted: str | None) -> None:
    app = shop(tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        answer = await client.request(method, path)
    patterns = RoutePatterns(described(app.routes))
    assert patterns.find(HTTP, method, decoded_path(path.encode())) == wanted
    if answer.status_code == 200 and "json" in answer.headers["content-type"] and path != "/openapi.json":
        assert answer.json() == wanted
    else:
        assert (answer.status_code in (404, 405)) == (wanted is None or wanted == "/static")


def test_a_plain_starlette_application(tmp_path: Any) -> None:
    async def socket(websocket: Any) -> None:
        await websocket.close()

    app = Starlette(
        routes=[
            Host("api.example", Router([Route("/hosted", print)])),
            WebSocketRoute("/ws/{room}", socket),
            Mount("/v1", routes=[Mount("/deep", routes=[Route("/{x}", print, methods=["POST"])])]),
            Route("/ws/{room}", print),
            Route("/raw{x}", print),
            Mount("", app=PlainTextResponse("all the rest")),
        ]
    )
    patterns = RoutePatterns(described(app.routes))
    assert patterns.find(WEBSOCKET, "WEBSOCKET", "/ws/a") == "/ws/{room}"
    assert patterns.find(WEBSOCKET, "WEBSOCKET", "/ws/a/") == ""
    assert patterns.find(HTTP, "GET", "/ws/a") == "/ws/{room}"
    assert patterns.find(HTTP, "POST", "/v1/deep/a") == "/v1/deep/{x}"
    assert patterns.find(HTTP, "GET", "/v1/deep/a") is None
    assert patterns.find(HTTP, "GET", "/v1/deep") is None
    assert patterns.find(HTTP, "GET", "/rawx") == "/raw{x}"
    # what is mounted at the root and tells nothing has the prefix of all
    assert patterns.find(HTTP, "GET", "/hosted") == ""
    assert patterns.whole("/app", "GET", "/hosted") == ""


@pytest.mark.parametrize(
    ("prefix", "path", "wanted"),
    [
        ("/", "/users/ann", "/users/{name}"),
        ("/", "/", ""),
        ("/app", "/users/ann", "/app/users/{name}"),
        ("/app", "/", "/app/"),
        ("/app", "", ""),
        ("/app", "/nothing/here", ""),
    ],
)
def test_the_prefix_comes_before_the_pattern(prefix: str, path: str, wanted: str) -> None:
    app = Starlette(routes=[Route("/", print), Route("/users/{name}", print)])
    assert RoutePatterns(described(app.routes)).whole(prefix, "GET", path) == wanted


def test_what_is_remembered_is_bounded_and_right() -> None:
    app = Starlette(routes=[Route("/users/{name}", print), Route("/carts/{name}", print, methods=["POST"])])
    patterns = RoutePatterns(described(app.routes))
    for _ in range(2):
        for number in range(2 * _MOST_KNOWN):
            assert patterns.whole("/", "GET", f"/users/{number}") == "/users/{name}"
            assert patterns.whole("/app", "GET", f"/users/{number}") == "/app/users/{name}"
            assert patterns.whole("/", "POST", f"/carts/{number}") == "/carts/{name}"
            assert patterns.whole("/", "GET", f"/carts/{number}") == ""
            assert len(patterns._known) <= _MOST_KNOWN
    patterns.whole("/", "GET", "/" + "x" * MAX_PATH_LENGTH)
    assert all(len(path) <= MAX_PATH_LENGTH for _, _, path in patterns._known)


def test_what_is_no_route_of_a_framework_is_left_out() -> None:
    class Own:
        path = "/own"

    patterns = RoutePatterns(described([Own(), object(), Route(f"/{'x' * 2000}", print), Route("/end", print)]))
    assert [route[1] for route in patterns.described] == ["/end"]
    assert described(None) == described({"a": 1}) == described(7) == ()


class Letters(Convertor[str]):
    """A parameter whose expression would take longer than anybody waits."""

    regex = "(a+)+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def test_no_expression_of_an_application_runs_in_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVERTOR_TYPES, "letters", Letters())
    routes = [
        Route("/letters/{x:letters}", print),
        Route("/{a:path}/x/{b:path}/x/{c:path}/end", print),
        Route("/{a:path}/x/{b:path}/end", print),
    ]
    patterns = RoutePatterns(described(routes))
    assert [route[1] for route in patterns.described] == ["/letters/{x:letters}", "/{a:path}/x/{b:path}/end"]
    assert patterns.find(HTTP, "GET", f"/letters/{'a' * 400}!") == "/letters/{x:letters}"
    assert patterns.find(HTTP, "GET", "/x" * 256) is None
    assert patterns.find(HTTP, "GET", "/letters/" + "a" * 600) is None


def test_uuids_and_numbers() -> None:
    kinds = ("uuid", "float", "int", "str")
    patterns = RoutePatterns(described([Route(f"/{{x:{kind}}}", print) for kind in kinds]))
    for path, kind in (
        ("0af76519-16cd-43dd-8448-eb211c80319c", "uuid"),
        ("1.5", "float"),
        ("12", "float"),
        ("a", "str"),
    ):
        assert patterns.find(HTTP, "GET", f"/{path}") == f"/{{x:{kind}}}"


def test_many_routes_and_deep_ones_are_bounded() -> None:
    assert len(described([Route(f"/{number}", print) for number in range(MAX_ROUTES + 5)])) == MAX_ROUTES
    deep: Any = Route("/end", print)
    for _ in range(MAX_DEPTH + 3):
        deep = Mount("/m", routes=[deep])
    patterns = RoutePatterns(described([deep]))
    assert patterns.find(HTTP, "GET", "/m" * (MAX_DEPTH + 3) + "/end") is None


def test_descriptions_travel_as_json_does() -> None:
    app = Starlette(routes=[Mount("/m", routes=[Route("/{x}", print)]), Route("/{y:int}", print)])
    patterns = RoutePatterns(json.loads(json.dumps(described(app.routes))))
    assert patterns.find(HTTP, "GET", "/m/1") == "/m/{x}"
    assert patterns.find(HTTP, "GET", "/1") == "/{y:int}"


@pytest.mark.parametrize(("prefix", "pattern"), [("/", "/users/{id}"), ("/a", "/a/{}/x"), ("/a", "")])
def test_prefix_and_pattern_travel_together(prefix: str, pattern: str) -> None:
    assert unpacked_route(packed_route(prefix, pattern) if pattern else prefix) == (prefix, pattern)


SHOP: Labels = ("/shop", "shop", "shop_Web", "")


def note(labels: Labels, method: str, path: bytes, status: int | str = 200) -> Note:
    return (labels, method, status, 0.0, 1.0, b"id", path, 7, "10.0.0.7", "r")


def test_notes_of_a_proxy_get_the_patterns_of_their_applications() -> None:
    routes = NotedRoutes("/root/")
    batch = [
        note(SHOP, "GET", b"/root/shop/users/a%20b"),
        note(SHOP, "GET", b"/root/shop/users/a%20b"),
        note(SHOP, "WEBSOCKET", b"/root/shop/ws"),
        note(SHOP, "GET", b"/root/shop/nothing"),
        note(("/other", "other", "other_D", ""), "GET", b"/root/other/users/x"),
        note(("", "", "", ""), "GET", b"/root/users/x", 404),
        note(SHOP, "gRPC", b"", "OK"),
        note(SHOP, "GET", b"/root/shop/users/" + b"x" * 400),
    ]

    def read() -> list[tuple[Any, ...]]:
        return list(zip(*routes.read([part for one in batch for part in one]), strict=True))

    assert read() == batch
    app = Starlette(routes=[Route("/users/{name}", print), WebSocketRoute("/ws", print)])
    routes.learn("shop_Web", described(app.routes))
    found = read()
    assert [one[0][3] for one in found] == [
        "/shop/users/{name}",
        "/shop/users/{name}",
        "/shop/ws",
        "",
        "",
        "",
        "",
        "/shop/users/{name}",
    ]
    assert found[0][0] is found[1][0] is found[7][0]
    assert [one[1:] for one in found] == [one[1:] for one in batch]


def test_routes_of_a_new_version_take_the_place_of_the_old_ones() -> None:
    routes = NotedRoutes("")
    asked = [*note(SHOP, "GET", b"/shop/7")]
    for path in ("/{id}", "/{number}"):
        routes.learn("shop_Web", described([Route(path, print)]))
        assert routes.read(asked * 2)[0][1][3] == f"/shop{path}"
    for number in range(10_000):
        routes.read([*note(SHOP, "GET", b"/shop/%d" % number)])
    assert len(routes._remembered) <= 4096
    routes.forget_all_but({"other"})
    assert routes.read(asked)[0] == [SHOP]
