"""The live page at `/`: its files, its stream of events, and the login where the admin port asks for a token."""

import asyncio
from collections.abc import Callable
from html import escape
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from servd.documents.control_plane import ControlPlane
from servd.documents.figure_views import Figures
from servd.ground.clock import SystemClock
from servd.observability.error_groups import ErrorBook
from servd.page.files import HEADERS, NAMES, page_file, template
from servd.page.live import MOST_PAGES, OpenPage, OpenPages
from servd.page.plain import with_tables
from servd.page.rows import rows_of
from servd.rest.access import AccessRules, is_same_origin
from servd.rest.exchange import Resource, read_body
from servd.rest.figures import figures_body
from servd.rest.problems import problem
from servd.rest.routes import Maker
from servd.rest.sessions import cookie, new_session, sessions_in

ABORT_KEY = "servd.abort"
"""Where the server puts what ends a connection at once into the ASGI scope."""
PAGE, LOGIN = "/", "/login"
OPEN_PATHS = frozenset({LOGIN, "/page/page.css", "/page/icon.svg"})
"""What somebody needs who is about to give the token; none of it says anything about the instance."""

_MAX_LOGIN_BYTES = 8192
_WRONG = "This is not the token."
_PLACE_OF_LOGOUT = "<!-- session -->"
_LOGOUT = '<button id="logout" type="button">Log out</button>'


def page_routes(
    plane: ControlPlane, pages: OpenPages, access: Callable[[], AccessRules], is_let_in: Callable[[Request], bool]
) -> dict[str, Maker]:
    """Paths of the page, which are no part of the API.

    Args:
        access: gives the rules of now.
        is_let_in: whether a request that was let in would be so now.
    """
    return {
        PAGE: lambda: page_resource(plane),
        LOGIN: lambda: login_resource(access),
        "/page/events": lambda: events_resource(pages, is_let_in),
        **{f"/page/{name}": lambda name=name: file_resource(name) for name in NAMES},
    }


def open_pages(plane: ControlPlane, errors: ErrorBook, figures: Figures) -> OpenPages:
    """The pages that show this instance; none is open yet."""
    return OpenPages(lambda: rows_of(plane.view(), errors.all(), figures_body(figures)), plane.changed, SystemClock())


def page_resource(plane: ControlPlane) -> Resource:
    """GET: the page, with tables of how everything is now for those who let no script run."""

    async def get(request: Request) -> Response:
        text = with_tables(template("index.html"), plane.view())
        if any(sessions_in("; ".join(request.headers.getlist("cookie")), _port_of(request))):
            text = text.replace(_PLACE_OF_LOGOUT, _LOGOUT, 1)
        return HTMLResponse(text, headers=_unkept())

    return {"GET": get}


def file_resource(name: str) -> Resource:
    """GET: one file of the page."""

    async def get(request: Request) -> Response:
        file = page_file(name)
        headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    return {"GET": get}


def events_resource(pages: OpenPages, is_let_in: Callable[[Request], bool]) -> Resource:
    """GET: server-sent events, `all` with every row and then `some` with those that changed; see `page.rows`.

    The stream ends when its session has, or the token is another one: at the next thing that it would be told, `BEAT_S` at most.
    """

    async def get(request: Request) -> Response:
        if pages.are_too_many:
            return problem(503, f"503: {MOST_PAGES} pages are open already; close one, then this one goes on")
        if request.method == "HEAD":
            return Response(headers=_Events.HEADERS)
        return _Events(pages, lambda: is_let_in(request))

    return {"GET": get}


def login_resource(access: Callable[[], AccessRules]) -> Resource:
    """POST: a session for whoever knows the token, and on to the page, where the form is. DELETE ends it."""

    async def get(_: Request) -> Response:
        return RedirectResponse(PAGE, 303, headers=_unkept())

    async def post(request: Request) -> Response:
        if not is_same_origin(request.headers):
            return problem(403, "403: a login must come from the login page itself")
        form = parse_qs((await read_body(request, _MAX_LOGIN_BYTES)).decode("latin-1"))
        rules, given = access(), form.get("token", [""])[0]
        if not rules.token:
            return RedirectResponse(PAGE, 303, headers=_unkept())
        if not rules.is_token(given):
            return login_page(_WRONG)
        return _to_page(request, new_session(rules.token, SystemClock().wall_time()))

    async def delete(request: Request) -> Response:
        return _to_page(request, "")

    return {"GET": get, "POST": post, "DELETE": delete}


def login_page(message: str = "") -> Response:
    """The form that asks for the token."""
    text = template("login.html").replace("<!-- message -->", escape(message), 1)
    return HTMLResponse(text, 401, headers={**_unkept(), "WWW-Authenticate": "Bearer"})


def _to_page(request: Request, session: str) -> Response:
    headers = {**_unkept(), "Set-Cookie": cookie(_port_of(request), session, is_tls=request.url.scheme == "https")}
    return RedirectResponse(PAGE, 303, headers=headers)


def _port_of(request: Request) -> int:
    """At which the connection was accepted."""
    return (request.scope.get("server") or ("", 0))[1] or 0


def _unkept() -> dict[str, str]:
    return {**HEADERS, "Cache-Control": "no-store"}


class _Events(Response):
    """The stream of one page."""

    HEADERS = {**HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}

    def __init__(self, pages: OpenPages, is_let_in: Callable[[], bool]) -> None:
        super().__init__(headers=self.HEADERS)
        self._pages = pages
        self._is_let_in = is_let_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._pages.open(scope.get(ABORT_KEY) or _nothing)
        watching = asyncio.get_running_loop().create_task(_end_with_client(receive, page))
        try:
            headers = [item for item in self.raw_headers if item[0] != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while (data := await self._pages.next(page)) and self._is_let_in():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watching.cancel()
            self._pages.close(page)


async def _end_with_client(receive: Receive, page: OpenPage) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    page.end()


def _nothing() -> None:
    """There is no connection to end."""
