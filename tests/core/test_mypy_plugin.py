"""What mypy says of calls by a method's name, and of `bind`, with `servd.app.mypy_plugin`."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mypy import api
from mypy.dmypy_server import Server
from mypy.main import process_options
from mypy.modulefinder import BuildSource

ROOT = Path(__file__).parents[2]
CONFIG = "tests/mypy_plugin/mypy.ini"
MODEL = """
from collections.abc import AsyncGenerator
from servd import deployment

@deployment(num_replicas=2)
class Model:
    scale = 1.0
    def __init__(self, path: str) -> None: ...
    async def predict(self, text: str) -> float: return 1.0
    async def words(self) -> AsyncGenerator[str, None]: yield "a"
"""
PROGRAM = """
from model import Model
from servd.handle import DeploymentHandle

async def use(model: DeploymentHandle[Model]) -> None:
    {line}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    # mypy sets them for the whole process
    thresholds, depth = gc.get_threshold(), sys.getrecursionlimit()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setrecursionlimit(depth)


def test_the_cases_are_as_they_say() -> None:
    said, errors, code = api.run(["--config-file", CONFIG, "tests/mypy_plugin"])
    assert code == 0, said + errors


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "model.predict.remote(3)",
            'Argument 1 to "predict" of "Model" has incompatible type "int"; expected "str | DeploymentResponse[str]"',
        ),
        ("model.predict.remote()", 'Missing positional argument "text" in call to "predict" of "Model"'),
        ("model.predcit.remote()", '"Model" has no attribute "predcit"; maybe "predict"?'),
        ("model.scale.remote()", '"scale" of "Model" is no method'),
        ("model.words.remote()", '"words" is a generator: call it with "options(stream=True)"'),
        (
            "model.options(stream=True).predict.remote('')",
            '"predict" is no generator: call it without "stream=True"',
        ),
        (
            "reveal_type(model.predict)",
            "DeploymentHandle[servd.calls.method_types.NamedMethod[model.Model, Literal['predict']]]",
        ),
        ("Model.bind()", 'Missing positional argument "path" in call to "bind" of "Deployment"'),
        ("reveal_type(Model.bind('p'))", "servd.app.deployment.Application[model.Model]"),
        ("type(model).remote(model, 3)", ""),
    ],
)
def test_what_is_said(tmp_path: Path, line: str, text: str) -> None:
    files = map(str, written(tmp_path, line))
    said, errors, _ = api.run(["--config-file", CONFIG, "--hide-error-codes", "--no-error-summary", *files])
    assert errors == ""
    assert text in said
    assert said.count("\n") == (1 if text else 0), said


def written(folder: Path, line: str) -> list[Path]:
    model, program = folder / "model.py", folder / "program.py"
    model.write_text(MODEL)
    program.write_text(PROGRAM.format(line=line))
    return [model, program]


@pytest.mark.parametrize(
    ("line", "before", "after", "expected"),
    [
        ("await model.predict.remote('a')", "text: str", "text: bytes", "bytes | DeploymentResponse[bytes]"),
        ("Model.bind('a')", "path: str", "path: bytes", "bytes"),
    ],
)
def test_the_daemon_of_mypy_sees_what_has_changed(
    tmp_path: Path, line: str, before: str, after: str, expected: str
) -> None:
    model, program = written(tmp_path, line)
    sources = [BuildSource(str(model), "model"), BuildSource(str(program), "program")]
    arguments = ["--config-file", CONFIG, "--cache-dir", os.devnull, "--local-partial-types", str(program)]
    options = process_options(arguments, server_options=True)[1]
    options.fine_grained_incremental = True
    # what `dmypy` runs, in this process
    server = Server(options, str(tmp_path / "status.json"))
    assert server.check(sources, False, False, 80)["status"] == 0
    model.write_text(MODEL.replace(before, after))
    assert f'expected "{expected}"' in str(server.check(sources, False, False, 80)["out"])
