"""One exchange of the admin plane: bodies in, conditions, answers out."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from servd.documents.control_plane import ControlPlane, InstanceView, check_match
from servd.exceptions import ConfigError, ListenError
from servd.ground.clock import SystemClock
from servd.ground.states import ProxyLocation
from servd.rest.peers import Peer
from servd.rest.problems import MAX_BODY_BYTES, BodyTooLargeError

T = TypeVar("T")

Endpoint = Callable[[Request], Awaitable[Response]]
Resource = dict[str, Endpoint]
"""Verb -> endpoint of one path. HEAD goes where GET goes."""

_DISCARD_BYTES = 16 * MAX_BODY_BYTES
_DISCARD_S = 5.0
_LARGE_BODY_BYTES = 64 * 1024
LISTEN_LIMIT_S = 60.0
PEER_KEY = "servd.peer"
"""Where the server puts the `Peer` of a connection into the ASGI scope."""
STRANGER = Peer(is_unix=False)


class BodyWatch:
    """An ASGI `receive` that knows whether the request body has ended."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._has_ended = True
        return message

    async def discard_rest(self) -> None:
        """Read what nobody read, within bounds: a client that still sends would lose the answer in a reset."""
        size = 0
        try:
            async with asyncio.timeout(_DISCARD_S):
                while not self._has_ended and size <= _DISCARD_BYTES:
                    size += len((await self()).get("body", b""))
        except TimeoutError:
            pass


def json_answer(body: Any, view: InstanceView | None = None, *, status: int = 200) -> Response:
    """JSON; `view` gives the `ETag`."""
    headers = {"ETag": f'"{view.revision}"'} if view is not None else None
    text = json.dumps(body)
    return Response(text, status, headers=headers, media_type="application/json; charset=utf-8")


def empty_answer(revision: int | None = None) -> Response:
    """200 without a body; clients of 2.5 expect the JSON type. revision: which the change has become, for the `ETag`."""
    headers = None if revision is None else {"ETag": f'"{revision}"'}
    return Response(b"", headers=headers, media_type="application/json")


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The request body.

    Raises:
        BodyTooLargeError: it is over `limit`.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise BodyTooLargeError
        parts.append(part)
    return b"".join(parts)


async def until_listening(plane: ControlPlane) -> None:
    """Wait until the data plane of a running instance accepts connections.

    Raises:
        ListenError: it does not within 60 s. The change itself holds.
    """
    clock = SystemClock()
    deadline = clock.now() + LISTEN_LIMIT_S
    while True:
        view = plane.view()
        if view.http.listening or not view.running or view.http.location == ProxyLocation.NO_SERVER:
            return
        left = deadline - clock.now()
        if left <= 0:
            reason = f"no proxy is ready after {LISTEN_LIMIT_S:.0f} s"
            raise ListenError(view.http.host, view.http.port, reason)
        await plane.changed(view.version, left)


def parse_json(body: bytes) -> Any:
    """The JSON value in `body`.

    Raises:
        ConfigError: empty, or not JSON; names the position.
    """
    if not body.strip():
        raise ConfigError("the request body is empty (line 1 column 1): send a JSON object")
    try:
        return json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object_without_repeats
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"the request body is not valid JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the request body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ConfigError("the request body is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"the request body is not valid JSON: {error}") from None


async def parsed(body: bytes, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the JSON in `body`; a large body is parsed beside the loop, which has processes to tend.

    Raises:
        ConfigError: as `parse_json`, or what `parse` finds.
    """
    if len(body) < _LARGE_BODY_BYTES:
        return parse(parse_json(body))
    return await asyncio.to_thread(lambda: parse(parse_json(body)))


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated!r} comes twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def if_match(request: Request, plane: ControlPlane) -> str | None:
    """The condition of the request, None for none.

    Raises:
        RevisionConflictError: it does not hold even now; asked before the body is looked at.
    """
    wanted = request.headers.get("if-match", "*").strip()
    if wanted in ("", "*"):
        return None
    check_match(wanted, plane.view().revision)
    return wanted


def config_file(request: Request) -> str:
    """The query parameter `config_file`: where the document was read from; "" if that is not said.

    Raises:
        ConfigError: it is no absolute path.
    """
    path = request.query_params.get("config_file", "")
    if (path and not path.startswith("/")) or "\0" in path:
        raise ConfigError(f"query parameter config_file must be an absolute path, got {path[:80]!r}")
    return path


def is_dry_run(request: Request) -> bool:
    """Whether the request only asks what would happen.

    Raises:
        ConfigError: `dry_run` is neither true nor false.
    """
    text = request.query_params.get("dry_run", "false").lower()
    if text not in ("true", "1", "false", "0"):
        raise ConfigError(f"query parameter dry_run must be true or false, got {text[:80]!r}")
    return text in ("true", "1")


def number_parameter(request: Request, name: str, default: float) -> float:
    """A number among the query parameters.

    Raises:
        ConfigError: it is none, or beyond what a double holds exactly.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 2**53:
        raise ConfigError(f"query parameter {name} must be a number, got {text[:80]!r}")
    return value


def origin(request: Request) -> str:
    """Who asked for a change, how and from where, for the audit trail."""
    peer: Peer = request.scope.get(PEER_KEY, STRANGER)
    client = request.client
    where = f"{client.host}:{client.port}" if client and not peer.is_unix else "the Unix socket"
    # the path as it was spelled: what it stands for may hold line breaks
    path = (request.scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1")
    return f"{request.method} {path} by {peer.name} from {where}"
