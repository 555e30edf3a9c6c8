"""The pages about the Python API: every public name with its parameters, examples that are Python."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import servd
from servd.app.options import DeploymentArguments
from servd.compat import ray_names

DOCS = Path(__file__).parents[2] / "docs"
API, FROM_RAY = (DOCS / "api.md").read_text(), (DOCS / "from-ray-serve.md").read_text()
PUBLIC_MODULES = ("servd", *(f"servd.{name}" for name in servd._MODULES))
# of the documents' models, which have a page of their own in the schema that `servd schema` prints
MODELS = {"servd.schema"}


def code_of(page: str) -> str:
    """What stands in backticks or blocks of code."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL) + re.findall(r"`([^`\n]+)`", page))


def names() -> list[tuple[str, str]]:
    return [(module, name) for module in PUBLIC_MODULES for name in importlib.import_module(module).__all__]


def parameters_of(thing: Any) -> list[str]:
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return []
    try:
        found = inspect.signature(thing).parameters.values()
    except ValueError:
        return []
    return [p.name for p in found if not p.name.startswith("_") and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@pytest.mark.parametrize(("module", "name"), names())
def test_every_public_name_is_described(module: str, name: str) -> None:
    assert re.search(rf"\b{name}\b", code_of(API)), f"{module}.{name} is not in docs/api.md"


@pytest.mark.parametrize(
    "name", [name for name in servd.__all__ if name not in ("Application", "BuiltApplication", "Deployment")]
)
def test_every_parameter_is_named(name: str) -> None:
    missing = [p for p in parameters_of(getattr(servd, name)) if not re.search(rf"\b{p}\b", code_of(API))]
    assert not missing, f"{name}: {missing}"


def test_every_option_of_a_deployment_is_named() -> None:
    assert not [key for key in DeploymentArguments.__annotations__ if not re.search(rf"`[^`]*\b{key}\b", API)]


@pytest.mark.parametrize("page", [API, FROM_RAY], ids=["api", "from-ray-serve"])
def test_examples_are_python(page: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("name", sorted({*ray_names._ALIASES, *ray_names._MAKERS}))
def test_every_module_under_rays_name_is_listed(name: str) -> None:
    assert re.search(rf"`[^`]*\b{name.rpartition('.')[2]}\b", FROM_RAY), f"{name} is not in docs/from-ray-serve.md"
