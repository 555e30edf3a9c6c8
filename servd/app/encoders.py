"""FastAPI's encoder and its own responses with the types that models return: arrays, frames, exceptions."""

from typing import Any

from fastapi.encoders import encoders_by_class_tuples, jsonable_encoder

from servd.app.json_text import foreign_encoders


def encoded(value: Any) -> Any:
    """The value made of JSON types."""
    return jsonable_encoder(value, custom_encoder={Exception: str, **foreign_encoders()})


def teach_fastapi() -> None:
    """Make FastAPI's own responses encode these types too."""
    encoders_by_class_tuples[str] = (*encoders_by_class_tuples.get(str, ()), Exception)
    for kind, encode in foreign_encoders().items():
        encoders_by_class_tuples[encode] = (kind,)
