"""servd's own files are replaced while a daemon runs: what runs goes on, processes that are replaced fit, everybody is told."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from servd.daemon import program
from servd.ground.edition import edition_at
from servd.ground.package import PACKAGE_DIR, PROTOCOL
from tests.system.running_daemon import ECHO, RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow


def replace_package(package: Path) -> None:
    """Another version, whose orders and facts have another form."""
    about = package / "ground" / "package.py"
    about.write_text(about.read_text().replace(f"PROTOCOL = {PROTOCOL}", f"PROTOCOL = {PROTOCOL + 1}"))
    for name in ("BuildOrder", "Hello", "ReplicaGoal", "ProxyStart"):
        messages = package / "wire" / ("build_messages.py" if name == "BuildOrder" else "messages.py")
        text = messages.read_text()
        start = text.index('    """', text.index(f"class {name}:"))
        end = text.index('"""\n', start + 8) + 4
        messages.write_text(f"{text[:end]}\n    of_tomorrow: int\n{text[end:]}")


def a_package(directory: Path) -> tuple[Path, Path, dict[str, str]]:
    """A copy of the package, code to deploy, and the environment of who runs that copy."""
    package, code = directory / "installed" / "servd", directory / "code"
    shutil.copytree(PACKAGE_DIR, package)
    code.mkdir()
    (code / "echo.py").write_text(ECHO)
    return package, code, {**os.environ, "PYTHONPATH": str(package.parent)}


def kill_all(daemon: RunningDaemon, *titles: str) -> None:
    """SIGKILL to processes of each kind, and wait until others are there."""
    before = {title: set(daemon.pids(title)) for title in titles}
    for pids in before.values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for title, pids in before.items():
        eventually(lambda title=title, pids=pids: set(daemon.pids(title)) - pids)  # type: ignore[misc]


@pytest.mark.long
def test_a_daemon_whose_package_is_replaced_goes_on_with_the_old_one_and_says_so(tmp_path: Path) -> None:
    package, code, variables = a_package(tmp_path)
    with a_daemon(settings_in(tmp_path), variables) as daemon:
        daemon.deploy(code)
        assert daemon.status()["notice"] == ""
        replace_package(package)
        eventually(lambda: f"(protocol {PROTOCOL + 1})" in daemon.status()["notice"])
        assert "were replaced" in daemon.status()["notice"]
        assert "servd stop && servd start" in daemon.status()["notice"]
        # everything that comes later is of the old version, whole
        kill_all(daemon, "controller", "proxy")
        (code / "echo.py").write_text(ECHO.replace("num_replicas=2", "num_replicas=3"))
        eventually(lambda: daemon.ask("PUT", "/api/serve/deployments/", {"import_path": "echo:app",
                                      "runtime_env": {"working_dir": str(code)}})[0] == 200)  # fmt: skip
        eventually(lambda: len(daemon.pids("replica")) == 3)
        daemon.wait_until_running()
        assert daemon.get("/")[0] == 200


@pytest.mark.long
def test_without_its_copy_a_daemon_waits_for_files_that_fit(tmp_path: Path) -> None:
    package, code, variables = a_package(tmp_path)
    with a_daemon(settings_in(tmp_path), variables) as daemon:
        daemon.deploy(code)
        replace_package(package)
        shutil.rmtree(f"{daemon.settings.state_dir}/{program.DIR_NAME}")
        [controller] = daemon.pids("controller")
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: f"the daemon runs servd {edition_at(PACKAGE_DIR)}" in daemon.errors)
        assert "servd stop && servd start" in daemon.errors
        assert daemon.get("/")[0] == 200
        # back again, though not quite the same: it adopts what lives, and says so. At once: it is tried again all the time.
        another = tmp_path / "another"
        shutil.copytree(PACKAGE_DIR, another)
        (another / "of_tomorrow.py").write_text("")
        package.rename(tmp_path / "away")
        another.rename(package)
        eventually(daemon.is_ready)
        eventually(lambda: "of its processes run" in daemon.status()["notice"])
        assert len(daemon.pids("replica")) == 2


@pytest.mark.long
def test_a_driver_of_another_protocol_is_refused_with_the_reason(tmp_path: Path) -> None:
    package = tmp_path / "installed" / "servd"
    shutil.copytree(PACKAGE_DIR, package)
    about = package / "ground" / "package.py"
    about.write_text(about.read_text().replace(f"PROTOCOL = {PROTOCOL}", f"PROTOCOL = {PROTOCOL + 1}"))
    (tmp_path / "echo.py").write_text(ECHO)
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(tmp_path)
        text = (
            "import servd, sys\n"
            "try:\n    servd.get_app_handle('default').remote(None).result(timeout_s=20)\n"
            "except Exception as error: print(type(error).__name__, error)\n"
        )
        variables = {**os.environ, "PYTHONPATH": str(package.parent), "SERVD_STATE_DIR": daemon.settings.state_dir}
        found = subprocess.run(
            [sys.executable, "-P", "-c", text], capture_output=True, text=True, env=variables, timeout=30
        )
        assert "protocol 2" in found.stdout, found
        assert "servd stop && servd start" in found.stdout
        assert "Timeout" not in found.stdout
