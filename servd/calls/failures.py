"""What user code raised and nobody caught: told once, where it was raised, to whoever listens in this process."""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from servd.calls.request_context import NO_REQUEST, RequestContext, current_request
from servd.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError, UserCodeError
from servd.observability.described import members_of, slot

Listener = Callable[[BaseException, str, Sequence[RequestContext], bool], None]
"""Gets the error, the name of what raised it, the requests that it fails, at least one, and whether user code has logged it."""

_listeners: list[Listener] = []
_told: dict[int, BaseException] = {}
"""By the identity of a request that goes on: what was told of it as a part of its batch."""
_logged: dict[int, BaseException] = {}
"""By the identity of a request that goes on: what user code has logged last as an error."""
_MARK = "_servd_told"

logger = logging.getLogger(__name__)


class ClientGoneError(OSError):
    """The client is gone: nothing can be sent any more, and nothing will come. An OSError, as ASGI asks for."""


class TimeLimitError(TimeoutError):
    """What a request waits for is not there at its time limit. Its caller ends it then too; who is first is chance."""


_NO_FAULTS = (BackPressureError, DeploymentUnavailableError, TimeLimitError)
"""What user code passes on and has not done."""
_TAKEN_BACK = (RequestCancelledError, asyncio.CancelledError, GeneratorExit)
"""How code of a request hears that it was taken back, and with it the calls that it has made."""
_CLIENT_GONE = {"starlette.requests": "ClientDisconnect", "starlette.websockets": "WebSocketDisconnect"}
"""Module -> what Starlette makes of it that the client has left: what it heard when it asked, and of a `ClientGoneError`."""
_MOST_MEMBERS = 1000


def listen(listener: Listener) -> None:
    """Tell this one from now on, and nobody else; any thread may call it."""
    _listeners[:] = [listener]


def tell(error: BaseException, method: str, *requests: RequestContext, is_logged: bool = False) -> bool:
    """User code raised this, and nothing of the user's caught it; any thread may tell.

    Nothing is told of what was told before: in the replica that a call went to, or in the batch. Nor is a refusal of another
    deployment that is too busy or away, that nobody waits any more, or that the request's time limit has passed. That goes for
    groups that hold nothing else, too.

    Args:
        method: of the deployment, or whatever names what raised it.
        requests: those that fail with it; by default the current one.
        is_logged: user code has logged it.

    Returns:
        Whether somebody listens.
    """
    requests = requests or (current_request.get(),)
    for request in requests:
        if request.span is not None and not says_unwanted(error, request):
            request.span.fail(error)
    return _tell(error, method, requests, is_logged=is_logged)


def note_logged(error: BaseException) -> None:
    """User code, or a framework that catches what it raises, has logged this as an error; any thread may tell."""
    request = current_request.get()
    if request is NO_REQUEST or request.has_ended:
        return
    if id(request) not in _logged:
        request.when_over(partial(_forget, _logged, id(request)))
    _logged[id(request)] = error


def tell_logged(method: str) -> None:
    """The current request fails, and nothing was raised: its framework has answered so. What was logged of it is why."""
    error = _logged.pop(id(current_request.get()), None)
    if error is not None:
        tell(error, method, is_logged=True)


def _tell(error: BaseException, method: str, requests: Sequence[RequestContext], *, is_logged: bool = False) -> bool:
    if not _listeners:
        return False
    if _is_new(error, requests):
        _listeners[0](error, method, requests, is_logged)
        if not issubclass(type(error), Exception):
            # it goes on as the cause of what its request fails with
            with suppress(Exception):
                BaseException.__setattr__(error, _MARK, True)
    return True


def tell_or_log(error: BaseException, method: str) -> None:
    """As `tell`, of what nobody else gets: where nobody listens, it is logged here."""
    if not tell(error, method) and not _is_no_fault(error, current_request.get()):
        logger.error("user_code_failed method=%s", method, exc_info=error)


def tell_of_batch(error: BaseException, method: str, requests: Sequence[RequestContext]) -> None:
    """As `tell`, of what all requests of a batch get: none of them tells it again."""
    # what the items make of it is theirs
    if (span := current_request.get().span) is not None:
        span.fail(error)
    if not _tell(error, method, requests):
        return
    for request in requests:
        if request is not NO_REQUEST and not request.has_ended:
            if id(request) not in _told:
                request.when_over(partial(_forget, _told, id(request)))
            _told[id(request)] = error


def _forget(kept: dict[int, BaseException], key: int) -> None:
    kept.pop(key, None)


def says_client_left(error: BaseException) -> bool:
    """Whether it says nothing but that the client has left, in whatever groups of tasks have put around it."""
    return _consists_of(error, partial(_is_a, kinds=(ClientGoneError, *_of_frameworks())))


def says_unwanted(error: BaseException, request: RequestContext) -> bool:
    """Whether it says nothing but that nobody waits for the request any more: its client has left, or it was taken back."""
    return _consists_of(error, partial(_is_a, kinds=_unwanted(request)))


def _is_no_fault(error: BaseException, request: RequestContext) -> bool:
    return _consists_of(error, partial(_is_a, kinds=(*_NO_FAULTS, *_unwanted(request))))


def _unwanted(request: RequestContext) -> tuple[type, ...]:
    # a call that the application itself takes back is its own affair
    return (ClientGoneError, *_of_frameworks(), *(_TAKEN_BACK if request.cancellations else ()))


def _of_frameworks() -> list[type]:
    # nobody can have raised what nobody has loaded
    return [getattr(sys.modules[module], name) for module, name in _CLIENT_GONE.items() if module in sys.modules]


def _is_a(error: BaseException, kinds: tuple[type, ...]) -> bool:
    # of the type alone: `isinstance` asks the object too, which may raise
    return issubclass(type(error), kinds)


def _consists_of(error: BaseException, fits: Callable[[BaseException], bool]) -> bool:
    """Whether it fits, or is a group of nothing but what fits, or of such groups."""
    waiting, seen = [error], 0
    while waiting:
        one, seen = waiting.pop(), seen + 1
        if not fits(one):
            members = members_of(one)
            if not members or seen > _MOST_MEMBERS:
                return False
            waiting += members
    return True


def _is_new(error: BaseException, requests: Sequence[RequestContext]) -> bool:
    wanted = min(requests, key=lambda request: request.cancellations)
    no_faults, of_batch = (*_NO_FAULTS, *_unwanted(wanted)), _told.get(id(requests[0]))
    return not _consists_of(error, lambda one: one is of_batch or _is_a(one, no_faults) or _was_told(one))


def _was_told(error: BaseException) -> bool:
    """In the replica that a call went to, or before it became what it is."""
    cause = slot(error, "__cause__")
    if type(error) is UserCodeError:
        return bool(slot(error, "__dict__").get("remote_traceback")) or _is_marked(cause)
    # `pickling.load_exception` puts it there; one of the user's was raised, and so has a traceback
    is_remote = type(cause) is UserCodeError and cause.remote_traceback and slot(cause, "__traceback__") is None
    return bool(is_remote) or _is_marked(error)


def _is_marked(error: BaseException | None) -> bool:
    return error is not None and not issubclass(type(error), Exception) and _MARK in slot(error, "__dict__")
