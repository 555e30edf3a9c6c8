"""FastAPI's encoder and its own responses with the types that models return: arrays, frames, exceptions."""

from typing import Any, NoReturn

from fastapi.encoders import encoders_by_class_tuples, jsonable_encoder

from servd.app.json_text import foreign_encoders, no_form
from servd.calls.response import DeploymentResponse
from servd.handle import DeploymentHandle, RayServeHandle, RayServeSyncHandle


def encoded(value: Any) -> Any:
    """The value made of JSON types."""
    return jsonable_encoder(value, custom_encoder={Exception: str, **foreign_encoders()})


def _refused(value: Any) -> NoReturn:
    raise no_form(value)


def teach_fastapi() -> None:
    """Make FastAPI's own responses encode these types too, and say of what is no value yet that it is none."""
    encoders_by_class_tuples[_refused] = (DeploymentResponse, DeploymentHandle, RayServeHandle, RayServeSyncHandle)
    encoders_by_class_tuples[str] = (*encoders_by_class_tuples.get(str, ()), Exception)
    for kind, encode in foreign_encoders().items():
        encoders_by_class_tuples[encode] = (kind,)
