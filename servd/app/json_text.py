"""JSON of what handlers return: Python's own types, those of models and frames, FastAPI's way for all others."""

import dataclasses
import datetime
import importlib
import json
import math
import sys
from enum import Enum
from types import GeneratorType
from typing import Any

from servd.observability.described import text_of

_KEYS = (str, int, float, type(None))
"""What JSON writes as keys: others are encoded first, as FastAPI does."""


def compact_json_text(value: Any) -> bytes:
    """JSON without spaces, in UTF-8, as FastAPI writes it; otherwise as `json_text`."""
    return json.dumps(_Walk().plain(value), separators=(",", ":"), ensure_ascii=False).encode()


def json_text(value: Any) -> bytes:
    """JSON with ", " and ": ", other characters than ASCII escaped.

    NaN and infinities, which JSON does not have, are null, as FastAPI serialises them.

    Raises:
        TypeError: a part has no JSON form; the text names its place. ValueError: it holds itself. RecursionError: it is too deep.
    """
    try:
        # nearly every value is one that JSON knows
        return _encode(value).encode()
    except RecursionError:
        raise
    except Exception:
        return json.dumps(_Walk().plain(value)).encode()


class _Walk:
    """Makes one result of JSON's own types, and knows where in it it is."""

    def __init__(self) -> None:
        self._path: list[Any] = []
        self._open: set[int] = set()

    def __repr__(self) -> str:
        return f"_Walk(at {self._place})"

    @property
    def _place(self) -> str:
        """As Python would write it."""
        return "result" + "".join(f"[{step!r}]" for step in self._path)

    def plain(self, value: Any) -> Any:
        """The value in types that JSON has; errors as of `json_text`."""
        if value is None or isinstance(value, str | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if id(value) in self._open:
            raise ValueError(f"the result has no JSON form: it holds itself at {self._place}")
        self._open.add(id(value))
        try:
            if isinstance(value, dict):
                return {self._key(key): self._part(key, item) for key, item in value.items()}
            if isinstance(value, list | tuple | GeneratorType):
                return [self._part(number, item) for number, item in enumerate(value)]
            return self.plain(self._made_of(value))
        finally:
            self._open.discard(id(value))

    def _part(self, step: Any, value: Any) -> Any:
        self._path.append(step)
        made = self.plain(value)
        # an error keeps the place where it was
        self._path.pop()
        return made

    def _key(self, key: Any) -> Any:
        if isinstance(key, float) and not math.isfinite(key):
            return json.dumps(key)
        made = key if isinstance(key, _KEYS) else self._made_of(key)
        if not isinstance(made, _KEYS):
            raise TypeError(
                f"the result has no JSON form at {self._place}: "
                f"keys must be str, int, float, bool or None, not {type(key).__qualname__}"
            )
        return made

    def _made_of(self, value: Any) -> Any:
        try:
            return _jsonable(value)
        except Exception as error:
            raise TypeError(f"the result has no JSON form at {self._place}: {text_of(error)}") from error


def _once(value: Any) -> Any:
    if isinstance(value, GeneratorType):
        # only the walk takes its items: whatever fails before the end, nobody could ask for them again
        raise TypeError
    return _jsonable(value)


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
        raise no_form(value) from None
    if isinstance(made, dict) and made and all(str(key).startswith("__") for key in made):
        # vars() of something that keeps no data there, as `pandas.NA`
        raise no_form(value)
    return made


def no_form(value: Any) -> TypeError:
    """What to raise for a value that JSON has nothing for."""
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


_encode = json.JSONEncoder(default=_once, allow_nan=False).encode
