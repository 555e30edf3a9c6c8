"""What a handler returned, as an HTTP response: status, headers, body, streams excepted; and by what it goes out."""

from enum import Enum
from typing import Any, Protocol

from servd.app.json_text import json_text
from servd.exceptions import BackPressureError, DeploymentUnavailableError, UserCodeError
from servd.ground.settings import SHOW_TRACEBACKS, is_on
from servd.observability.described import slot, summary_of, text_of
from servd.observability.tracebacks import user_traceback
from servd.wire.http_answers import retry_after, text_for_clients

Headers = tuple[tuple[bytes, bytes], ...]
Answer = tuple[int, Headers, bytes]
"""Status, headers, body."""

RAW_TEXT: Headers = ((b"content-type", b"text/plain"),)
UTF8_TEXT: Headers = ((b"content-type", b"text/plain; charset=utf-8"),)
JSON: Headers = ((b"content-type", b"application/json"),)


class Exchange(Protocol):
    """One HTTP request or WebSocket as user code answers it, whoever carries that: a replica, this process alone, a Ray cluster.

    has_begun: the response's head was sent.
    """

    has_begun: bool

    @property
    def scope(self) -> Any:
        """Its ASGI scope, a dictionary."""
        ...

    @property
    def whole_below(self) -> int:
        """Bytes; a body smaller than that may go by `finish`, whoever reads it."""
        ...

    @property
    def receive(self) -> Any:
        """ASGI's."""
        ...

    async def send(self, message: Any) -> None:
        """ASGI's."""
        ...

    def finish(self, status: int, headers: Any, body: bytes) -> None:
        """Answer with a whole response, once the handler has ended."""
        ...

    async def answer(self, status: int, headers: Any, body: bytes) -> None:
        """Answer with a whole response, and wait until it has left."""
        ...


def value_response(value: Any) -> Answer:
    """Response for a value that is neither a Response nor a generator.

    Raises:
        TypeError, ValueError, RecursionError: it has no JSON form.

    Source: runtime.md section 3; Ray Serve 2.5, http_util.
    """
    kind = type(value)
    if kind is str:
        return 200, UTF8_TEXT, value.encode()
    if kind is bytes:
        return 200, RAW_TEXT, value
    if value is None:
        return 200, RAW_TEXT, b""
    if kind is not dict and not isinstance(value, Enum):
        if isinstance(value, bytes | bytearray | memoryview):
            return 200, RAW_TEXT, bytes(value)
        if isinstance(value, str):
            return 200, UTF8_TEXT, value.encode()
    return 200, JSON, json_text(value)


def chunk_body(item: Any) -> bytes:
    """One item of a streamed response: bytes as is, str as UTF-8, anything else as JSON."""
    if item is None:
        return json_text(item)
    return value_response(item)[2]


TIME_OUT: Answer = (408, UTF8_TEXT, b"The time limit of the request passed while its handler ran.")
"""Response to a request whose handler failed when its time was up, whatever it raised."""


def error_response(error: BaseException, request_id: str = "") -> Answer:
    """Response for an exception out of user code: 500, or what its callers get where a deployment it called is too busy or away.

    What was raised is the operator's to see; the client gets the id that leads there.
    """
    # of the type alone: `isinstance` asks the object too, which may raise
    kind = type(error)
    if issubclass(kind, BackPressureError | DeploymentUnavailableError):
        said = slot(error, "__dict__")
        status = said.get("status_code", kind.status_code)
        later = retry_after(status, said.get("retry_after_s"))
        headers = UTF8_TEXT if later is None else (*UTF8_TEXT, (b"retry-after", later))
        return status, headers, text_for_clients(text_of(error)).encode(errors="replace")
    text = f"Internal Server Error (request id {request_id})" if request_id else "Internal Server Error"
    if is_on(SHOW_TRACEBACKS):
        text = f"{text}\n\n{user_traceback(error)}"
    return 500, UTF8_TEXT, text.encode(errors="replace")


def body_message(item: Any) -> dict[str, Any]:
    """The ASGI message that streams one item of a generator."""
    return {"type": "http.response.body", "body": chunk_body(item), "more_body": True}


def exit_error(error: BaseException) -> UserCodeError:
    """User code: `sys.exit()`, or an error of its own that is no `Exception`, fails one request, not its replica."""
    return UserCodeError(f"the handler raised {summary_of(error)}")
