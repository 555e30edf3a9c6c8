"""FastAPI's encoder with the types that models return: arrays, frames, exceptions."""

import sys
from typing import Any

from fastapi.encoders import jsonable_encoder


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
