"""What `servd init` writes: a small application with its document, its test and an image."""

import os
import re

from servd.exceptions import ConfigError
from servd.ground.package import DISTRIBUTION, VERSION

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

_FILES = {
    "main.py": '''"""The application: a model, and the routes in front of it."""

from fastapi import FastAPI

import servd
from servd.handle import DeploymentHandle

api = FastAPI(title="{name}")


@servd.deployment
class Model:
    """What is large is loaded here, once per replica."""

    def __init__(self) -> None:
        self.weights = {{"good": 1, "great": 2, "bad": -1, "awful": -2}}

    def score(self, text: str) -> int:
        return sum(self.weights.get(word.strip(".,;:!?"), 0) for word in text.lower().split())


@servd.deployment
@servd.ingress(api)
class Api:
    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    @api.get("/score")
    async def score(self, text: str) -> dict[str, int]:
        return {{"score": await self.model.score.remote(text)}}


app = Api.bind(Model.bind())
''',
    "serve.yaml": """# servd deploy --wait serve.yaml
applications:
- name: {name}
  route_prefix: /
  import_path: main:app
  runtime_env:
    working_dir: .            # this folder; a deploy copies it
    excludes: [.venv, .git, __pycache__, "*.whl"]
  deployments:
  - name: Model
    num_replicas: 2
""",
    "test_main.py": '''"""pytest: the application in the test's own process, with an HTTP client in front."""

from collections.abc import Iterator

import pytest

from main import app
from servd.testing import AppClient, client


@pytest.fixture
def http() -> Iterator[AppClient]:
    with client(app) as http:
        yield http


@pytest.mark.parametrize(("text", "score"), [("A great day!", 2), ("good, but awful", -1), ("", 0)])
def test_the_score_of_a_text(http: AppClient, text: str, score: int) -> None:
    assert http.get("/score", params={{"text": text}}).json() == {{"score": score}}


def test_a_request_without_a_text_is_refused(http: AppClient) -> None:
    assert http.get("/score").status_code == 422
''',
    "requirements.txt": """{distribution}=={version}
""",
    "requirements-dev.txt": """-r requirements.txt
httpx
pytest
""",
    "Dockerfile": """# docker build -t {image} . && docker run --rm -p 8000:8000 {image}
FROM python:3.13-slim
RUN useradd --create-home app
WORKDIR /home/app
# a wheel of servd in this folder is taken from here
COPY requirements.txt *.whl ./
RUN pip install --no-cache-dir --find-links . -r requirements.txt
COPY --chown=app . .
USER app
EXPOSE 8000
HEALTHCHECK --start-period=30s \\
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/-/healthz', timeout=2)"]
# SIGTERM lets requests that run end; an application that does not come up ends the container with an error
CMD ["servd", "run", "serve.yaml", "--host", "0.0.0.0", "--log-to-stderr"]
""",
    ".dockerignore": """.venv
.git
**/__pycache__
.pytest_cache
""",
}


def write_project(place: str) -> list[str]:
    """Write a project into a new or empty folder; gives the names of its files.

    Args:
        place: the folder; the application has the name of its last part.

    Raises:
        ConfigError: the name is none for an application and an image, the folder holds something, or nothing can be written.
    """
    folder = os.path.abspath(place)
    name = os.path.basename(folder)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a project: give up to 64 letters, digits, `_`, `.` and `-`, a letter first"
        )
    words = {"name": name, "image": name.lower().rstrip("_.-"), "distribution": DISTRIBUTION, "version": VERSION}
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise ConfigError(f"{folder} holds files already: give the name of a new folder, or of an empty one")
        for file, text in _FILES.items():
            with open(os.path.join(folder, file), "x", encoding="utf-8") as made:
                made.write(text.format(**words))
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from error
    return list(_FILES)
