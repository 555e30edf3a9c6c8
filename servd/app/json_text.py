"""JSON of what handlers return: Python's own types, those of models and frames, FastAPI's way for all others."""

import dataclasses
import datetime
import importlib
import json
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

from servd.observability.described import text_of


def compact_json_text(value: Any) -> bytes:
    """JSON without spaces, in UTF-8, as FastAPI writes it; otherwise as `json_text`."""
    return _json_text(value, separators=(",", ":"), ensure_ascii=False)


def json_text(value: Any) -> bytes:
    """JSON with ", " and ": ", other characters than ASCII escaped.

    NaN and infinities, which JSON does not have, are null, as FastAPI serialises them.

    Raises:
        TypeError: a part has no JSON form; the text names its place. ValueError, RecursionError: it holds itself, or is too deep.
    """
    try:
        # nearly every value is one that JSON knows
        return _encode(value).encode()
    except RecursionError:
        raise
    except Exception:
        return _json_text(value)


def _json_text(value: Any, **style: Any) -> bytes:
    # with the words for what has no form, and for numbers that JSON does not have
    text = json.dumps(value, default=_with_places(value))
    return json.dumps(json.loads(text, parse_constant=lambda _: None), **style).encode()


def _with_places(root: Any) -> Callable[[Any], Any]:
    def encode(part: Any) -> Any:
        try:
            return _jsonable(part)
        except Exception as error:
            place = _place_of(part, root)
            raise TypeError(f"the result has no JSON form at {place}: {text_of(error)}") from error

    return encode


def _place_of(part: Any, root: Any) -> str:
    """Where a part lies in a result, as Python would write it."""
    waiting: list[tuple[str, Any]] = [("result", root)]
    seen: set[int] = set()
    while waiting:
        place, value = waiting.pop()
        if value is part:
            return place
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [(f"{place}[{key!r}]", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{place}[{number}]", item) for number, item in enumerate(value)]
    # a part of something that was taken apart on the way
    return f"a {type(part).__qualname__} inside result"


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
    for kind, encode in foreign_encoders().items():
        if isinstance(value, kind):
            return encode(value)
    # FastAPI is half a second and 20 MB: only those who return its kind of things pay for it
    encoder = importlib.import_module("fastapi.encoders").jsonable_encoder
    try:
        made = encoder(value, custom_encoder=foreign_encoders())
    except ValueError as error:
        if not isinstance(error.args[0] if error.args else None, list):
            raise
        # the encoder's last attempts failed, dict() and vars(): their texts say nothing about the value
        raise _no_form(value) from None
    if isinstance(made, dict) and made and all(str(key).startswith("__") for key in made):
        # vars() of something that keeps no data there, as `pandas.NA`
        raise _no_form(value)
    return made


def _no_form(value: Any) -> TypeError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return TypeError(f"a {kind} has no JSON form: return what has, or a Response")


def foreign_encoders() -> dict[Any, Any]:
    """Encoders by type, of the libraries that are loaded: nobody else can have made such a value."""
    found: dict[Any, Any] = {}
    if numpy := sys.modules.get("numpy"):
        found[numpy.ndarray] = lambda array: array.tolist()
        found[numpy.generic] = lambda scalar: scalar.item()
    if pandas := sys.modules.get("pandas"):
        found[pandas.DataFrame] = lambda frame: frame.to_dict(orient="records")
    return found


_encode = json.JSONEncoder(default=_jsonable, allow_nan=False).encode
