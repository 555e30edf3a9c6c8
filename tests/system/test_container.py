"""The images of servd and of what `servd init` writes, their commands run as process 1 of namespaces of their own."""

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from servd.commands.new_project import write_project
from servd.daemon.life import LEFTOVER_DRAIN_S, STOP_TIMEOUT_S
from servd.ground.settings import DEFAULT_HTTP_PORT
from tests.system.container_image import BASE, Container, Image, built, instructions, user_id, why_not
from tests.system.running_daemon import eventually
from tests.wheels import built_wheel

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
SLOW = """
import asyncio, pathlib
from servd import deployment

@deployment
class Slow:
    async def __call__(self, request):
        pathlib.Path("/tmp/begun").touch()
        while not pathlib.Path("/tmp/go").exists():
            await asyncio.sleep(0.01)
        return "to its end"

app = Slow.bind()
"""
CONFIG = """
applications:
- name: slow
  import_path: slow:app
  runtime_env: {working_dir: .}
"""


def asked() -> list[str]:
    code = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8000/', timeout=30).read().decode())"
    return ["python", "-c", code]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "shop"
    write_project(str(folder))
    return folder


@pytest.mark.parametrize("which", ["servd", "shop"])
def test_what_a_dockerfile_says(which: str, project: Path) -> None:
    text = ((ROOT if which == "servd" else project) / "Dockerfile").read_text()
    said = instructions(text)
    words = [word for word, _ in said]
    assert {rest.partition(" AS ")[0] for word, rest in said if word == "FROM"} == {BASE}
    last = said[len(words) - words[::-1].index("FROM") :]
    options = dict(last)
    # nothing is changed by root once the user is set, and the data port is the one that is asked
    assert options["USER"] not in ("root", "0")
    assert options["EXPOSE"] == str(DEFAULT_HTTP_PORT)
    assert f":{DEFAULT_HTTP_PORT}/-/healthz" in options["HEALTHCHECK"]
    assert "--log-to-stderr" in options["CMD"]


def test_the_image_has_what_every_option_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pip,) = [rest for word, rest in instructions((ROOT / "Dockerfile").read_text()) if word == "RUN" and "pip" in rest]
    installed = pip.partition("'.[")[2].partition("]'")[0].split(",")
    assert set(extras) - set(installed) == {"testing", "dev", "models", "docs", "bench"}


def test_compose_gives_time_to_drain() -> None:
    (text,) = [block for block in PAGE.read_text().split("```yaml\n") if block.startswith("services:")]
    (service,) = yaml.safe_load(text.partition("```")[0])["services"].values()
    assert float(service["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S + LEFTOVER_DRAIN_S
    volumes = dict(rest.split(":")[:2] for rest in service["volumes"])
    assert dict(instructions((ROOT / "Dockerfile").read_text()))["VOLUME"] in volumes.values()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if reason := why_not():
        pytest.skip(reason)
    yield from built(ROOT, tmp_path_factory.mktemp("servd"))


@pytest.fixture(scope="module")
def shop(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if reason := why_not():
        pytest.skip(reason)
    built_wheel(project)
    yield from built(project, tmp_path_factory.mktemp("shop"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[list[Container]]:
    """Containers of a test, which all end with it."""
    running: list[Container] = []
    yield running
    for container in running:
        container.close()


def drains(container: Container) -> None:
    """A request that runs is served to its end after SIGTERM, and the container ends well."""
    container.said(["rm", "-f", "/tmp/begun"])
    container.image.path("/tmp/go").unlink(missing_ok=True)
    request = container.executed(asked())
    eventually(lambda: container.image.path("/tmp/begun").exists())
    os.kill(container.first(), signal.SIGTERM)
    eventually(lambda: "proxy_draining" in container.errors.read_text())
    container.image.path("/tmp/go").touch()
    assert container.process.wait(70) == 0, container.errors.read_text()
    assert request.communicate(timeout=20)[0] == "to its end\n"


def reaps(container: Container) -> None:
    """Whoever loses its parent becomes a child of process 1."""
    container.said(["sh", "-c", "sleep 0.1 & exit 0"])
    eventually(lambda: "Z" not in container.states().values() and not any("sleep" in key for key in container.states()))


@pytest.mark.long
def test_the_image_of_servd(image: Image, run: list[Container], tmp_path: Path) -> None:
    run.append(Container(image, tmp_path / "first"))
    eventually(run[0].is_healthy)
    assert run[0].users() == {user_id(image)}
    image.path("/srv/slow.py").write_text(SLOW)
    image.path("/srv/serve.yaml").write_text(CONFIG)
    run[0].said(["servd", "deploy", "--wait", "/srv/serve.yaml"])
    image.path("/tmp/go").touch()
    assert run[0].said(asked()) == "to its end\n"
    reaps(run[0])
    run[0].stop(signal.SIGKILL)
    # what was deployed is in the volume
    run.append(Container(image, tmp_path / "second"))
    eventually(run[1].is_healthy)
    eventually(lambda: "RUNNING" in run[1].said(["servd", "status", "--name", "slow"]))
    drains(run[1])
    assert "slow" in (tmp_path / "second").read_text()


@pytest.mark.long
def test_the_image_of_an_application(shop: Image, run: list[Container], tmp_path: Path) -> None:
    shop.path("slow.py").write_text(SLOW)
    shop.path("serve.yaml").write_text(CONFIG)
    run.append(Container(shop, tmp_path / "first"))
    eventually(run[0].is_healthy)
    eventually(lambda: "successfully" in (tmp_path / "first").read_text())
    assert run[0].users() == {user_id(shop)}
    reaps(run[0])
    drains(run[0])
    # it is stopped while it starts
    run.append(Container(shop, tmp_path / "second"))
    eventually(lambda: "Running config file" in (tmp_path / "second").read_text())
    assert run[1].stop() in (0, 128 + signal.SIGTERM)
    shop.path("slow.py").write_text("import nothing_of_that_name\n")
    run.append(Container(shop, tmp_path / "third"))
    assert run[2].process.wait(60) == 1
    assert "nothing_of_that_name" in (tmp_path / "third").read_text()
