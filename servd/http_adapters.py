"""Functions that turn an HTTP request into the input of a graph.

FastAPI is not imported here: a driver with one of the plain adapters works without it.
"""

import email.parser
import email.policy
import importlib
import io
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = [
    "NdArray",
    "image_to_ndarray",
    "json_request",
    "json_to_multi_ndarray",
    "json_to_ndarray",
    "pandas_read_json",
    "starlette_request",
]


async def starlette_request(request: Request) -> Request:
    """The request itself."""
    return request


async def json_request(request: Request) -> Any:
    """The parsed JSON body.

    Raises:
        ValueError: the body is no JSON.
    """
    return await request.json()


class NdArray(BaseModel):
    """An array as JSON. array: nested list of 1 to 4 dimensions; it is reshaped first, then cast."""

    array: list[float] | list[list[float]] | list[list[list[float]]] | list[list[list[list[float]]]]
    shape: list[int] | None = None
    dtype: str | None = None


def json_to_ndarray(payload: NdArray) -> Any:
    """The array of a body `{"array": ..., "shape": ..., "dtype": ...}`.

    Raises:
        ImportError: numpy is not installed.
    """
    array = _library("numpy").array(payload.array)
    if payload.shape is not None:
        array = array.reshape(*payload.shape)
    return array if payload.dtype is None else array.astype(payload.dtype)


def json_to_multi_ndarray(payload: dict[str, NdArray]) -> dict[str, Any]:
    """Arrays of a body `{key: {"array": ...}}`, by key."""
    return {key: json_to_ndarray(value) for key, value in payload.items()}


async def image_to_ndarray(request: Request) -> Any:
    """The image in the multipart file field `img`, as an array of shape (height, width[, channels]).

    Raises:
        ImportError: Pillow or numpy is not installed.
        HTTPException: 422, there is no such field.
    """
    image, numpy = _library("PIL.Image", "Pillow"), _library("numpy")
    content = _form_field(await request.body(), request.headers.get("content-type", ""), "img")
    if content is None:
        missing = {"type": "missing", "loc": ["body", "img"], "msg": "Field required", "input": None}
        raise HTTPException(422, detail=[missing])  # type: ignore[arg-type]
    return numpy.array(image.open(io.BytesIO(content)))


async def pandas_read_json(request: Request) -> Any:
    """The body as a DataFrame; query parameters go to pandas' JSON reader.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = _library("pandas")
    return pandas.read_json(io.BytesIO(await request.body()), **request.query_params)


def _library(module: str, package: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this http adapter needs {package or module}: install it") from error


def _form_field(body: bytes, content_type: str, name: str) -> bytes | None:
    """Content of a field of a multipart form."""
    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    if not form.is_multipart():
        return None
    for part in form.iter_parts():
        if part.get_param("name", header="content-disposition") == name:
            content = part.get_payload(decode=True)
            return content if isinstance(content, bytes) else None
    return None
