"""Runtime environments: directories, archives and their cache, import path."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import importlib
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.exceptions import DeployError
from servd.ground.clock import SystemClock, block_for
from servd.ground.package import PACKAGE_DIR
from servd.observability import tracebacks
from servd.replica.code.code_cache import cache_dir, unpacked_archive
from servd.replica.code.environment import apply_environment, import_path, interpreter_path
from servd.wire.build_messages import BuildOrder

NEVER = float("inf")


@pytest.fixture(autouse=True)
def _same_process_afterwards() -> Iterator[None]:
    """The import path and the current directory are the process's: give them back."""
    path, cwd = sys.path[:], os.getcwd()
    yield
    sys.path[:] = path
    os.chdir(cwd)


def a_zip(path: Path, **files: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(f"repo-HEAD/{name}.py", content)
    return path


def an_order(tmp_path: Path, env: dict[str, Any], **fields: Any) -> BuildOrder:
    start = tmp_path / "start"
    start.mkdir(exist_ok=True)
    fields = {"start_dir": str(start), "state_dir": str(tmp_path / "state"), **fields}
    return BuildOrder("f1", "b1", "shop", "m:app", {}, env, **fields)


def test_a_working_dir_is_first_on_the_path_and_current(tmp_path: Path) -> None:
    home, extra = tmp_path / "home", tmp_path / "extra"
    home.mkdir()
    extra.mkdir()
    env = {"working_dir": home.as_uri(), "py_modules": [str(extra), None]}
    applied = apply_environment(an_order(tmp_path, env, python_path="/daemon/path"))
    assert sys.path[:2] == [str(extra), str(home)]
    assert os.getcwd() == str(home)
    assert applied.search_path == (str(extra), str(home))
    assert "/daemon/path" not in sys.path


def test_without_a_working_dir_the_daemons_directory_is_used(tmp_path: Path) -> None:
    env = {"env_vars": {"PYTHONPATH": "/own/one:/own/two"}}
    apply_environment(an_order(tmp_path, env, python_path="/daemon/a:/daemon/b"))
    assert sys.path[:5] == [str(tmp_path / "start"), "/daemon/a", "/daemon/b", "/own/one", "/own/two"]
    assert os.getcwd() == str(tmp_path / "start")


def test_a_shipped_application_gets_its_drivers_path(tmp_path: Path) -> None:
    driver = ("", "/driver/lib", *sys.path)
    applied = apply_environment(an_order(tmp_path, {}, driver_path=driver, python_path="/daemon/a"))
    assert sys.path[:2] == [str(tmp_path / "start"), "/driver/lib"]
    assert "/daemon/a" not in sys.path
    assert os.path.dirname(os.__file__) not in applied.search_path


def test_the_interpreters_own_directories_stay_and_servd_too(tmp_path: Path) -> None:
    apply_environment(an_order(tmp_path, {}))
    assert os.path.dirname(os.__file__) in sys.path
    assert os.path.dirname(PACKAGE_DIR) in sys.path


def test_the_daemons_directories_leave_the_path() -> None:
    assert interpreter_path(["", "/start", "/usr/lib", "/daemon"], ["/start", "/daemon"]) == ["/usr/lib"]
    assert import_path(["/a"], ["/p"], ["/usr/lib", "/a"])[:3] == ["/a", "/p", "/usr/lib"]


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "code.zip", in_archive="VALUE = 5")
    applied = apply_environment(an_order(tmp_path, {"working_dir": archive.as_uri()}))
    assert importlib.import_module("in_archive").VALUE == 5
    assert applied.archives == (applied.cwd,)
    del sys.modules["in_archive"]
    # the same URI stands for the same content while it is cached
    a_zip(archive, in_archive="VALUE = 6")
    again = apply_environment(an_order(tmp_path, {"working_dir": archive.as_uri()}))
    assert again == applied
    assert Path(again.cwd, "in_archive.py").read_text() == "VALUE = 5"
    left = [name for name in os.listdir(cache_dir(str(tmp_path / "state"))) if ".part" in name]
    assert left == []


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"working_dir": "/no/such/directory"}, "runtime_env setup failed: working_dir: there is no directory"),
        ({"working_dir": "file:///no/such.zip"}, "working_dir: file:///no/such.zip: there is no file"),
        ({"py_modules": ["/no/such"]}, "py_modules: there is no directory /no/such"),
        ({"pip": "no_such_requirements.txt"}, "pip: cannot read the requirements file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, env: dict[str, Any], expected: str) -> None:
    before = sys.path[:]
    with pytest.raises(DeployError, match="runtime_env setup failed") as caught:
        apply_environment(an_order(tmp_path, env))
    assert expected in str(caught.value)
    assert sys.path == before


def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_text("no zip")
    with pytest.raises(DeployError, match="no zip file"):
        unpacked_archive(bad.as_uri(), str(tmp_path / "state"), deadline=NEVER)
    names = os.listdir(cache_dir(str(tmp_path / "state")))
    assert [name for name in names if not name.endswith(".lock")] == []


def test_a_leftover_of_a_killed_build_is_swept(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "code.zip", a="")
    key = "z-" + hashlib.sha256(archive.as_uri().encode()).hexdigest()[:40]
    leftover = Path(cache_dir(str(tmp_path / "state")), key + ".partxyz")
    leftover.mkdir(parents=True)
    unpacked_archive(archive.as_uri(), str(tmp_path / "state"), deadline=NEVER)
    assert not leftover.exists()


def test_many_at_once_unpack_once(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "code.zip", a="x" * 100_000)
    found: list[str] = []

    def get() -> None:
        found.append(unpacked_archive(archive.as_uri(), str(tmp_path / "state"), deadline=NEVER))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


class Site(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; `/redirect/<n>/...` redirects n times, `/away.zip` to somewhere else."""

    hits: list[str] = []

    def do_GET(self) -> None:
        self.hits.append(self.path)
        target = ""
        if self.path.startswith("/redirect/"):
            number, _, rest = self.path.removeprefix("/redirect/").partition("/")
            target = f"/redirect/{int(number) - 1}/{rest}" if int(number) > 1 else f"/{rest}"
        if self.path == "/away.zip":
            target = "http://198.51.100.1/code.zip"
        if self.path == "/ftp.zip":
            target = "ftp://127.0.0.1/code.zip"
        if self.path == "/redirect-that-drips.zip":
            target = "/code.zip"
        if target:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            if "drips" in self.path:
                self.drip()
        elif self.path == "/short.zip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"PK")
            self.close_connection = True
        elif self.path == "/drip.zip":
            self.send_response(200)
            self.end_headers()
            self.drip()
        elif self.path == "/drip-head.zip":
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 200:
                    self.wfile.write(bytes([byte]))
                    block_for(0.05)
            self.close_connection = True
        else:
            super().do_GET()

    def drip(self) -> None:
        """A body without an end, as far as anybody wants to wait."""
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(b"P")
                block_for(0.05)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    a_zip(tmp_path / "site" / "code.zip", fetched="VALUE = 7")
    handler = functools.partial(Site, directory=str(tmp_path / "site"))
    Site.hits.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_archive_is_fetched_once(tmp_path: Path, site: str) -> None:
    for _ in range(2):
        path = unpacked_archive(f"{site}/redirect/5/code.zip", str(tmp_path / "state"), deadline=NEVER)
    assert Path(path, "fetched.py").read_text() == "VALUE = 7"
    assert Site.hits.count("/code.zip") == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/missing.zip", "HTTP Error 404"),
        ("/redirect/6/code.zip", "cannot be fetched"),
        ("/away.zip", "not https:"),
        ("/ftp.zip", "cannot be fetched"),
        ("/short.zip", "cannot be fetched|broke off"),
    ],
)
def test_what_cannot_be_fetched_is_named(tmp_path: Path, site: str, path: str, expected: str) -> None:
    with pytest.raises(DeployError, match=expected) as caught:
        unpacked_archive(site + path, str(tmp_path / "state"), deadline=NEVER)
    assert site + path in str(caught.value)


def test_the_body_of_a_redirect_is_not_read(tmp_path: Path, site: str) -> None:
    deadline = SystemClock().now() + 2
    path = unpacked_archive(f"{site}/redirect-that-drips.zip", str(tmp_path / "state"), deadline=deadline)
    assert Path(path, "fetched.py").exists()


def test_a_pinned_archive_is_known_by_its_content(tmp_path: Path, site: str) -> None:
    content = (tmp_path / "site" / "code.zip").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    state = str(tmp_path / "state")
    path = unpacked_archive(f"{site}/code.zip#sha256={digest.upper()}", state, deadline=NEVER)
    assert Path(path, "fetched.py").read_text() == "VALUE = 7"
    elsewhere = (tmp_path / "elsewhere.zip").as_uri() + f"#sha256={digest}"
    assert unpacked_archive(elsewhere, state, deadline=NEVER) == path
    assert Site.hits == ["/code.zip"]


def test_an_archive_that_is_not_the_pinned_one_is_not_kept(tmp_path: Path, site: str) -> None:
    state = str(tmp_path / "state")
    for uri in (f"{site}/code.zip", (tmp_path / "site" / "code.zip").as_uri()):
        with pytest.raises(DeployError, match="not the pinned one"):
            unpacked_archive(f"{uri}#sha256={'0' * 64}", state, deadline=NEVER)
    assert [name for name in os.listdir(cache_dir(state)) if not name.endswith(".lock")] == []


@pytest.mark.parametrize("path", ["/drip.zip", "/drip-head.zip", "/redirect/1/drip-head.zip"])
def test_a_server_that_drips_meets_the_deadline(tmp_path: Path, site: str, path: str) -> None:
    clock = SystemClock()
    began = clock.now()
    with pytest.raises(DeployError, match="longer than setup_timeout_seconds allows"):
        unpacked_archive(f"{site}{path}", str(tmp_path / "state"), deadline=began + 0.15)
    assert clock.now() - began < 5


def test_stored_code_is_used_by_way_of_a_copy_that_may_be_written_to(tmp_path: Path) -> None:
    stored, shared = tmp_path / "state" / "code" / "abc", tmp_path / "state" / "code" / "z-def"
    for directory, name in ((stored, "written_app"), (shared, "written_module")):
        (directory / "data").mkdir(parents=True)
        (directory / f"{name}.py").write_text("VALUE = 1\n")
        (directory / "data" / "run.sh").write_text("true\n")
        (directory / "data" / "run.sh").chmod(0o500)
        (directory / "link").symlink_to("data")
    env = {"working_dir": str(stored), "py_modules": [str(shared)]}
    order = an_order(tmp_path, env, origins={str(stored): "/home/me/app"})
    applied = apply_environment(order)
    module = importlib.import_module("written_module")
    Path("out.txt").write_text("out")
    Path("link/run.sh").write_text("false\n")
    Path(str(module.__file__)).with_name("cache.json").write_text("{}")
    assert sorted(os.listdir(stored)) == ["data", "link", "written_app.py"]
    assert "cache.json" not in os.listdir(shared)
    assert (stored / "data" / "run.sh").read_text() == "true\n"
    assert os.access("data/run.sh", os.X_OK)
    assert tracebacks.users_paths(f"{applied.cwd}/x.py {stored}/y.py") == "/home/me/app/x.py /home/me/app/y.py"
    # a replica that is spawned sees what others of its build wrote, another build does not
    assert apply_environment(order) == applied
    assert Path("out.txt").read_text() == "out"
    other = apply_environment(dataclasses.replace(order, fork_server_id="f2"))
    assert other.cwd != applied.cwd
    assert not os.path.exists("out.txt")
    del sys.modules["written_module"]


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_package_among_the_py_modules_is_imported_under_its_name(tmp_path: Path, is_stored: bool) -> None:
    package, modules = tmp_path / "own_package", tmp_path / "own_modules"
    origins = {}
    if is_stored:
        package, modules = (tmp_path / "state" / "code" / name for name in ("abc", "def"))
        origins = {str(package): "/home/me/own_package", str(modules): "/home/me/own_modules"}
    for directory in (package, modules):
        directory.mkdir(parents=True)
        (directory / "inner.py").write_text("VALUE = 1\n")
    (package / "__init__.py").write_text("")
    env = {"py_modules": [str(package), str(modules)], "working_dir": str(package)}
    applied = apply_environment(an_order(tmp_path, env, origins=origins))
    try:
        inside = importlib.import_module("own_package.inner")
        assert importlib.import_module("inner").__file__ == f"{applied.search_path[1]}/inner.py"
        if is_stored:
            assert tracebacks.users_paths(str(inside.__file__)) == "/home/me/own_package/inner.py"
            assert os.listdir(applied.search_path[0]) == ["own_package"]
            assert applied.cwd.endswith("/abc")
    finally:
        for name in ("own_package", "own_package.inner", "inner"):
            sys.modules.pop(name, None)


def test_a_copy_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "state" / "code" / "abc").mkdir(parents=True)
    (tmp_path / "state" / "work").write_text("no directory")
    order = an_order(tmp_path, {"working_dir": str(tmp_path / "state" / "code" / "abc")})
    with pytest.raises(
        DeployError, match=r"runtime_env setup failed: cannot copy .*state/code/abc to .*state/work/f1/abc"
    ):
        apply_environment(order)
