"""What types need at run time: classes take parameters, a handle takes a method as `Class.method`; the typed example works."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from servd import Application, Deployment, batch, deployment, multiplexed
from servd.app.built import handle_style
from servd.ground.ids import DeploymentID
from servd.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator, RayServeSyncHandle
from servd.testing import client

EXAMPLE = Path(__file__).parents[2] / "examples" / "typed"


class Model:
    def predict(self, text: str) -> str:
        return text

    @batch
    async def many(self, texts: list[str]) -> list[str]:
        return texts

    @multiplexed
    async def load(self, model_id: str) -> str:
        return model_id


@pytest.mark.parametrize(
    "kind",
    [DeploymentHandle, RayServeSyncHandle, DeploymentResponse, DeploymentResponseGenerator, Application, Deployment],
)
def test_a_class_takes_a_parameter_and_is_no_other_class(kind: Any) -> None:
    assert kind[Model].__origin__ is kind
    assert Model in kind[Model].__args__


@pytest.mark.parametrize("annotation", [DeploymentHandle[Model], "DeploymentHandle[Model]"])
def test_a_parameter_of_such_a_type_gets_a_handle(annotation: Any) -> None:
    assert handle_style(annotation) == "DeploymentHandle"


def test_a_method_is_named_by_itself() -> None:
    handle: DeploymentHandle[Model] = DeploymentHandle(DeploymentID("Model", "app"))
    for method in (Model.predict, Model.many, Model.load):
        assert handle.options(method_name=method) == handle.options(method_name=method.__name__)


@pytest.mark.parametrize("wrong", [3, Model, object()])
def test_what_is_no_method_is_named(wrong: Any) -> None:
    handle = DeploymentHandle(DeploymentID("Model", "app"))
    with pytest.raises(TypeError, match=r"or the method as `Class.method`, got"):
        handle.options(method_name=wrong)


def test_a_class_stays_itself_under_its_deployment() -> None:
    assert deployment(num_replicas=2)(Model).func_or_class is Model


def test_the_typed_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "reviews", raising=False)
    with client(importlib.import_module("reviews").app) as http:
        assert http.get("/score", params={"text": "A great day"}).json() == {"score": 2.0}
        assert http.get("/words", params={"text": "Great but awful"}).text == "great\nawful\n"
    monkeypatch.delitem(sys.modules, "reviews")
