"""FastAPI's encoder with the types that models return: arrays, frames, exceptions."""

import sys
from typing import Any

from fastapi.encoders import encoders_by_class_tuples, jsonable_encoder


def encoded(value: Any) -> Any:
    """The value made of JSON types."""
    return jsonable_encoder(value, custom_encoder=foreign_encoders())


def foreign_encoders() -> dict[Any, Any]:
    """Encoders by type, of the libraries that are loaded: nobody else can have made such a value."""
    found: dict[Any, Any] = {Exception: str}
    if numpy := sys.modules.get("numpy"):
        found[numpy.ndarray] = lambda array: array.tolist()
        found[numpy.generic] = lambda scalar: scalar.item()
    if pandas := sys.modules.get("pandas"):
        found[pandas.DataFrame] = lambda frame: frame.to_dict(orient="records")
    return found


def teach_fastapi() -> None:
    """Make FastAPI's own responses encode these types too."""
    encoders_by_class_tuples[str] = (*encoders_by_class_tuples.get(str, ()), Exception)
    for kind, encode in foreign_encoders().items():
        if kind is not Exception:
            encoders_by_class_tuples[encode] = (kind,)
