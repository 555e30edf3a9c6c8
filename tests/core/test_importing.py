"""From import path or file to an application; builders; the version of the code."""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from servd.app.deployment import Application, make_deployment
from servd.calls import pickling
from servd.exceptions import DeployError
from servd.replica.code.environment import Environment
from servd.replica.code.importing import as_application, code_version, load_application
from servd.wire.build_messages import BuildOrder

APP = """
from servd.app.deployment import make_deployment
import {name}_helper
class Model:
    def __init__(self, *args): self.args = args
app = make_deployment(Model, {{}}).bind()
def builder(args): return make_deployment(Model, {{}}).bind(args)
def broken(args): raise KeyError("inside")
not_bound = make_deployment(Model, {{}})
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory on the import path with a module of a fresh name, taken back afterwards."""
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(APP.format(name=name))
    (tmp_path / f"{name}_helper.py").write_text("VALUE = 1\n")
    (tmp_path / f"{name}_broken.py").write_text("def f():\n    import not_there_at_all\nf()\n")
    (tmp_path / f"{name}_exits.py").write_text("import sys\nsys.exit(3)\n")
    sys.path.insert(0, str(tmp_path))
    yield tmp_path / name
    sys.path.remove(str(tmp_path))
    for module in [key for key in sys.modules if key.startswith("user_")]:
        del sys.modules[module]


def an_order(import_path: str, **fields: Any) -> BuildOrder:
    return BuildOrder("f1", "b1", "shop", import_path, fields.pop("args", {}), fields.pop("env", {}), **fields)


def an_environment(home: Path) -> Environment:
    return Environment((str(home.parent),), str(home.parent))


@pytest.mark.parametrize("separator", [":", "."])
def test_an_import_path_is_built(home: Path, separator: str) -> None:
    built = load_application(an_order(f"{home.name}{separator}app"), an_environment(home))
    assert list(built.deployments) == ["Model"]
    assert (built.name, built.ingress_name, built.route_prefix) == ("shop", "Model", "/")


def test_a_builder_gets_the_arguments(home: Path) -> None:
    built = load_application(an_order(f"{home.name}:builder", args={"a": 1}), an_environment(home))
    assert built.ingress.init_args == ({"a": 1},)


def test_a_shipped_application_is_built(home: Path, tmp_path: Path) -> None:
    class Local:
        pass

    shipped = pickling.dump_application(make_deployment(Local, {}).bind())
    file = tmp_path / f"{hashlib.sha256(shipped).hexdigest()}.pkl"
    file.write_bytes(shipped)
    built = load_application(an_order("", application_file=str(file)), an_environment(home))
    assert list(built.deployments) == ["Local"]
    file.write_bytes(shipped[:-1])
    with pytest.raises(DeployError, match="is damaged"):
        load_application(an_order("", application_file=str(file)), an_environment(home))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("no_such_module_anywhere:app", ["ModuleNotFoundError", "Searched for modules in: {home}", "working_dir"]),
        ("{name}:nothing", ["AttributeError", "{name}.py", "has no attribute 'nothing'"]),
        ("{name}:not_bound", ["TypeError", ".bind(...)"]),
        ("{name}:Model", ["TypeError", "expected an application or a builder function"]),
        ("{name}_broken:app", ['_broken.py", line 2, in f', "not_there_at_all", "working_dir"]),
        ("{name}_exits:app", ["SystemExit: 3"]),
        ("{name}:broken", ["in broken", "KeyError: 'inside'"]),
        ("nonsense", ["ValueError", "nonsense", "module:attribute"]),
    ],
)
def test_failures_name_the_users_frames(home: Path, path: str, expected: list[str]) -> None:
    values = {"name": home.name, "home": str(home.parent)}
    with pytest.raises(DeployError) as caught:
        load_application(an_order(path.format(**values)), an_environment(home))
    text = str(caught.value)
    for part in expected:
        assert part.format(**values) in text
    assert "servd/replica" not in text
    assert "importlib" not in text


def test_a_library_that_has_patched_threads_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patching = ModuleType("gevent.monkey")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patching)
    # loaded, and not called
    load_application(an_order(f"{home.name}:app"), an_environment(home))
    vars(patching)["saved"] = {"_thread": {}, "threading": {}, "socket": {}}
    with pytest.raises(DeployError, match="gevent patch Python's socket, threading: a replica cannot run then"):
        load_application(an_order(f"{home.name}:app"), an_environment(home))


def test_code_version_changes_with_what_matters(home: Path) -> None:
    environment = an_environment(home)

    def version(**fields: Any) -> str:
        order = an_order(f"{home.name}:{fields.pop('attribute', 'app')}", **fields)
        load_application(order, environment)
        return code_version(order, environment)

    first = version()
    assert version() == first
    assert version(env={"env_vars": {}}) == first
    assert version(env={"env_vars": {"A": "1"}}) != first
    assert version(attribute="builder") != first
    assert version(attribute="builder", args={"a": 1}) != version(attribute="builder")
    helper = Path(f"{home}_helper.py")
    helper.write_text("VALUE = 2\n")
    changed = version()
    assert changed != first
    helper.write_text("VALUE = 1\n")
    assert version() == first
    # the URI of an archive stands for what is in it
    archived = dataclasses.replace(environment, archives=(str(home.parent),))
    order = an_order(f"{home.name}:app")
    before = code_version(order, archived)
    helper.write_text("VALUE = 3\n")
    assert code_version(order, archived) == before


class Arguments(BaseModel):
    count: int


def a_bound() -> Application:
    class Model:
        pass

    return make_deployment(Model, {}).bind()


def test_a_pydantic_annotation_is_parsed_into() -> None:
    seen: list[Any] = []

    def build(args: Arguments) -> Application:
        seen.append(args)
        return a_bound()

    def build_by_name(args: "Arguments") -> Application:
        return build(args)

    as_application(build, {"count": "3"})
    as_application(build_by_name, {"count": 4})
    assert seen == [Arguments(count=3), Arguments(count=4)]
    with pytest.raises(ValidationError):
        as_application(build, {"count": "many"})


def test_other_annotations_get_a_dict() -> None:
    seen: list[Any] = []

    def build(args: "dict[str, Unknown]") -> Application:  # type: ignore[name-defined]  # noqa: F821
        seen.append(args)
        return a_bound()

    as_application(build, {"a": "b"})
    assert seen == [{"a": "b"}]


def test_builders_are_checked() -> None:
    with pytest.raises(ValueError, match="built already"):
        as_application(a_bound(), {"a": 1})
    with pytest.raises(TypeError, match="takes 0"):
        as_application(lambda: a_bound(), {})
    with pytest.raises(TypeError, match="takes 2"):
        as_application(lambda a, b: a_bound(), {})  # noqa: ARG005
    with pytest.raises(TypeError, match="returned int"):
        as_application(lambda args: 1, {})  # noqa: ARG005
    with pytest.raises(TypeError, match="expected an application"):
        as_application(3, {})
