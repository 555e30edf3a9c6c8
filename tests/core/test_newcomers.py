"""What goes wrong in the first hour: each error names its cause and the next step."""

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

import servd
from servd.app.json_text import json_text
from servd.daemon.admin_client import NoDaemonError, UnreachableError
from servd.exceptions import AlreadyRunningError, ListenError
from servd.ground.ids import DeploymentID
from servd.handle import DeploymentHandle
from servd.observability.tracebacks import user_traceback
from servd.replica.code.importing import as_application, import_target
from servd.schema import check_import_path
from servd.testing import client

PAGE = Path(__file__).parents[2] / "docs" / "faq.md"

api = FastAPI()


@servd.deployment
class Model:
    def score(self, text: str) -> int:
        return len(text)


@servd.deployment
@servd.ingress(api)
class Front:
    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    @api.get("/call-forgotten")
    async def call_forgotten(self) -> Any:
        score: Any = self.model.score
        return score("x")

    @api.get("/await-forgotten")
    async def await_forgotten(self) -> Any:
        return {"score": self.model.score.remote("x")}

    @api.get("/await-forgotten-typed")
    async def await_forgotten_typed(self) -> dict[str, int]:
        return {"score": self.model.score.remote("x")}  # type: ignore[dict-item]

    @api.get("/await-forgotten-sum")
    async def await_forgotten_sum(self) -> Any:
        return self.model.score.remote("x") + 1

    @api.get("/await-forgotten-use")
    async def await_forgotten_use(self) -> Any:
        return self.model.score.remote("x").bit_length()

    @api.get("/handle-returned")
    async def handle_returned(self) -> Any:
        return {"model": self.model}

    @api.get("/stream-forgotten")
    async def stream_forgotten(self) -> Any:
        return list(self.model.options(stream=True).score.remote("x")) + 1  # type: ignore[operator]

    @api.get("/blocks")
    async def blocks(self) -> Any:
        return self.model.score.remote("x").result()

    @api.get("/relative")
    async def relative(self) -> Any:
        return Path("weights.bin").read_bytes()

    @api.get("/package")
    async def package(self) -> Any:
        import no_package_of_that_name.layers

        return no_package_of_that_name


APP = Front.bind(Model.bind())


@pytest.fixture(scope="module")
def get() -> Iterator[Callable[[str], Any]]:
    with client(APP, name="newcomers") as http:
        yield http.get


@pytest.mark.parametrize(
    ("path", "cause", "step"),
    [
        ("call-forgotten", "a handle is called with `.remote`", "`await handle.score.remote(...)`"),
        ("await-forgotten", "DeploymentResponse has no JSON form", "`await` it for its value"),
        ("await-forgotten-typed", "DeploymentResponse(not awaited)", "`await` it for its value"),
        ("await-forgotten-sum", "'DeploymentResponse' and 'int'", "`await` it for its value"),
        ("await-forgotten-use", "no attribute 'bit_length'", "`await` it for its value"),
        (
            "handle-returned",
            "DeploymentHandle has no JSON form",
            "call it for a value, `await handle.method.remote(...)`",
        ),
        ("stream-forgotten", "would block the event loop", "use `async for` instead of `for`"),
        ("blocks", "would block the event loop", "use `await` instead of `.result()`"),
        ("relative", "'weights.bin'", "name the folder that holds the file as working_dir"),
        (
            "package",
            "No module named 'no_package_of_that_name'",
            "install it where the daemon runs, or name it in `pip`",
        ),
    ],
)
def test_a_mistake_in_a_handler(get: Callable[[str], Any], path: str, cause: str, step: str) -> None:
    with pytest.raises(Exception) as caught:
        get(f"/{path}")
    text = user_traceback(caught.value)
    assert cause in text
    assert step in text


def _running_handle() -> Any:
    return DeploymentHandle(DeploymentID("Model", "a"))


def _listen_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        socket.create_server(taken.getsockname())


MISTAKES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no module": (
        lambda: import_target("nothing_of_that_name:app"),
        "No module named 'nothing_of_that_name'",
        "install it",
    ),
    "a file": (
        lambda: check_import_path("src/hello.py:app"),
        "names a file",
        "'hello:app', and its folder as working_dir",
    ),
    "a file alone": (lambda: check_import_path("hello.py"), "names a file", "'hello:app'"),
    "no attribute": (lambda: import_target(f"{__name__}:ap"), "has no attribute 'ap'", "applications in it: APP"),
    "no application": (lambda: import_target("json:app"), "has no attribute 'app'", "make one with `.bind(...)`"),
    "not bound": (lambda: as_application(Model, {}), "got Deployment(name=Model", "call its `.bind(...)`"),
    "run unbound": (lambda: servd.run(Model, local=True), "got Deployment", "call its `.bind(...)`"),  # type: ignore[arg-type]
    "constructed": (lambda: Model(), "is a deployment and cannot be called", "servd.run(Model.bind())"),
    "handle called": (lambda: _running_handle()("x"), "a handle is called with `.remote`", "await handle.remote(...)"),
    "handle returned": (
        lambda: json_text([_running_handle()]),
        "DeploymentHandle has no JSON form",
        "call it for a value",
    ),
    "no loop": (lambda: asyncio.get_running_loop(), "no running event loop", "`async def __init__` too"),
    "no loop of the thread": (
        lambda: ThreadPoolExecutor().submit(asyncio.get_event_loop).result(),
        "There is no current event loop in thread",
        "`async def __init__` too",
    ),
    "no servd": (
        lambda: _raise(UnreachableError("http://localhost:52365", "refused")),
        "failed to connect",
        "`servd start`",
    ),
    "none there": (
        lambda: _raise(NoDaemonError("/s", "there is no socket")),
        "no daemon answers on /s",
        "servd start --state-dir /s",
    ),
    "two": (lambda: _raise(AlreadyRunningError("/s", 7)), "already runs on /s: pid 7", "servd stop --state-dir /s"),
    "port of the code's": (_listen_twice, "Address already in use", "and `max_surge_percent=0`"),
    "port": (
        lambda: _raise(ListenError("127.0.0.1", 8000, "address already in use", "--http-port")),
        "cannot listen on 127.0.0.1:8000: address already in use",
        "choose another with --http-port",
    ),
}


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_before_there_is_a_request(mistake: str) -> None:
    make, cause, step = MISTAKES[mistake]
    with pytest.raises(Exception) as caught:
        make()
    text = user_traceback(caught.value)
    assert cause in text
    assert step in text


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_page_about_messages_explains_it(mistake: str) -> None:
    with pytest.raises(Exception) as caught:
        MISTAKES[mistake][0]()
    text = user_traceback(caught.value).replace("`", "")
    headings = re.findall(r"^### `(.*)`$", PAGE.read_text(), re.MULTILINE)
    assert any(re.search(".*".join(map(re.escape, heading.split("…"))), text) for heading in headings), text


def test_other_errors_are_left_as_they_are(get: Callable[[str], Any]) -> None:
    for error in (KeyError("inside"), FileNotFoundError(2, "No such file or directory", "/abs"), ValueError("a value")):
        assert user_traceback(error).endswith(str(error))
    with pytest.raises(asyncio.CancelledError) as caught:
        raise asyncio.CancelledError
    assert user_traceback(caught.value).endswith("CancelledError")
