"""The application's packages are on the import path before servd's web stack is loaded: libraries look for others only then."""

import inspect
from collections.abc import AsyncIterator

import pytest
import typing_extensions

from servd.wire.build_messages import BuildOrder
from tests.rooms.replica_room import Room, a_room
from tests.wheels import a_wheel

pytestmark = pytest.mark.slow

APP = """
import sys
import starlette.formparsers, starlette.requests
from servd.app.deployment import make_deployment

class Model:
    async def found(self):
        return {
            "forms": starlette.formparsers.multipart is not None,
            "mark": getattr(sys.modules["typing_extensions"], "MARK", ""),
        }

app = make_deployment(Model, {}).bind()
"""
# as much of the package as Starlette asks for
FORMS = {
    "python_multipart/__init__.py": "__version__ = '1.0'\n",
    "python_multipart/exceptions.py": "class FormParserError(ValueError): pass\n",
    "python_multipart/multipart.py": "MultipartCallbacks = QuerystringCallbacks = dict\ndef parse_options_header(v): ...\n",
}
EXTENSIONS = inspect.getsource(typing_extensions) + "\nMARK = 'of the application'\n"


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        made.write(shop=APP)
        yield made


def an_order(room: Room, *wheels: str) -> BuildOrder:
    folder = room.home / "wheels"
    pip = ["--no-index", f"--find-links {folder}", *wheels]
    return room.order("shop:app", runtime_env={"working_dir": str(room.app_dir), "pip": pip})


async def test_libraries_of_servds_find_the_packages(room: Room) -> None:
    a_wheel(room.home / "wheels", "python_multipart", FORMS)
    a_wheel(room.home / "wheels", "typing_extensions", EXTENSIONS, version="999.0")
    order = an_order(room, "python_multipart", "typing_extensions==999.0")
    hello = await room.open_fork_server(order)
    assert hello.result is not None
    assert hello.result.error == ""
    await room.running(room.start_of("Model"))
    wanted = {"forms": True, "mark": "of the application"}
    assert await room.call("Model", "found") == wanted
    spawned = room.start_of("Model", "b")
    room.spawn(spawned, order)
    assert (await room.report(spawned.replica_id, lambda r: r.phase in ("running", "failed"))).error == ""
    room.route(spawned)
    assert await room.call("Model", "found") == wanted


async def test_packages_beside_the_code_are_found_too(room: Room) -> None:
    for file, text in FORMS.items():
        (room.app_dir / file).parent.mkdir(exist_ok=True)
        (room.app_dir / file).write_text(text)
    assert (await room.open_fork_server(room.order("shop:app"))).result is not None
    await room.running(room.start_of("Model"))
    assert (await room.call("Model", "found"))["forms"] is True


@pytest.mark.parametrize("name", ["starlette", "zmq", "pydantic", "queue", "psutil", "uvloop"])
async def test_a_file_of_a_librarys_name_does_not_take_its_place(room: Room, name: str) -> None:
    room.write(**{name: "raise RuntimeError('of the user')\n"})
    hello = await room.open_fork_server(room.order("shop:app"))
    assert hello.result is not None
    assert hello.result.error == ""


async def test_packages_that_servd_cannot_run_with_are_named(room: Room) -> None:
    a_wheel(room.home / "wheels", "starlette", {"starlette/__init__.py": "__version__ = '0.1'\n"}, version="0.1")
    hello = await room.open_fork_server(an_order(room, "starlette==0.1"))
    assert hello.result is not None
    assert hello.result.error.startswith("runtime_env setup failed: servd's own code cannot be loaded")
    assert "of its packages, servd needs starlette<2,>=1\n" in hello.result.error
    assert "No module named 'starlette." in hello.result.error
