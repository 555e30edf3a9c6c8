"""What a handler returned, as an HTTP response: status, headers, body. Streams excepted."""

import dataclasses
import datetime
import importlib
import json
import sys
from enum import Enum
from typing import Any

from servd.exceptions import BackPressureError, DeploymentUnavailableError
from servd.observability.described import text_of
from servd.observability.tracebacks import user_traceback

Headers = tuple[tuple[bytes, bytes], ...]
Answer = tuple[int, Headers, bytes]
"""Status, headers, body."""

RAW_TEXT: Headers = ((b"content-type", b"text/plain"),)
UTF8_TEXT: Headers = ((b"content-type", b"text/plain; charset=utf-8"),)
JSON: Headers = ((b"content-type", b"application/json"),)
_RETRY_LATER: Headers = (*UTF8_TEXT, (b"retry-after", b"1"))


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
    return 200, JSON, json_body(value)


def chunk_body(item: Any) -> bytes:
    """One item of a streamed response: bytes as is, str as UTF-8, anything else as JSON."""
    if item is None:
        return json_body(item)
    return value_response(item)[2]


def json_body(value: Any) -> bytes:
    """JSON with ", " and ": ", other characters than ASCII escaped, NaN allowed."""
    return json.dumps(value, default=_jsonable).encode()


def error_response(error: BaseException) -> Answer:
    """Response for an exception out of user code: 500, or 503 when a deployment it called is too busy or
    away.
    """
    # of the type alone: `isinstance` asks the object too, which may raise
    kind = type(error)
    if issubclass(kind, BackPressureError | DeploymentUnavailableError):
        return kind.status_code, _RETRY_LATER, text_of(error).encode(errors="replace")
    text = f"Unexpected error, traceback: {user_traceback(error)}"
    return 500, UTF8_TEXT, text.encode(errors="replace")


def _jsonable(value: Any) -> Any:
    """`value`, which JSON does not know, as something that it knows better."""
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, Exception):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(type(value), "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    for kinds, encode in _foreign_encoders():
        if isinstance(value, kinds):
            return encode(value)
    # FastAPI is half a second and 20 MB: only those who return its kind of things pay for it
    encoder = importlib.import_module("fastapi.encoders").jsonable_encoder
    try:
        return encoder(value, custom_encoder=dict(_foreign_encoders()))
    except ValueError as error:
        if not isinstance(error.args[0] if error.args else None, list):
            raise
        # the encoder's last attempts failed, dict() and vars(): their texts say nothing about the value
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"the handler returned a {kind}, which has no JSON form: return what has, or a Response"
        ) from None


def _foreign_encoders() -> list[tuple[Any, Any]]:
    """Encoders of the libraries that are loaded: nobody else can have made such a value."""
    found: list[tuple[Any, Any]] = []
    if numpy := sys.modules.get("numpy"):
        found += [(numpy.ndarray, lambda array: array.tolist()), (numpy.generic, lambda scalar: scalar.item())]
    if pandas := sys.modules.get("pandas"):
        found.append((pandas.DataFrame, lambda frame: frame.to_dict(orient="records")))
    return found
