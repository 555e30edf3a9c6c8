"""The daemon as a whole: start, refusals, stop, and what survives whose death."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servd.daemon import launch
from servd.daemon.state_lock import running_pid
from servd.exceptions import DeployError
from servd.ground.settings import Settings
from tests.ports import free_port
from tests.processes import parents
from tests.system.running_daemon import (
    ECHO,
    RunningDaemon,
    a_daemon,
    eventually,
    settings_in,
    titles,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    code.mkdir()
    (code / "echo.py").write_text(ECHO)
    return code


def refusal(settings: Settings) -> str:
    """What a daemon says that does not start."""
    daemon = RunningDaemon(settings)
    assert daemon.process.wait(20) == 1, daemon.errors
    assert list(titles(settings.state_dir)) == []
    return daemon.errors


def timer_of(local_port: int | None, remote_port: int) -> str:
    """What the kernel waits for on a connection (`/proc/net/tcp`)."""
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer, *_ = row.split()
        if [int(end.rpartition(":")[2], 16) for end in (local, remote)] == [local_port, remote_port]:
            return "keep-alive" if timer.startswith("02") else timer
    return "no such connection"


def test_both_planes_answer_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with a_daemon(settings_in(tmp_path, proxies=2)) as daemon:
        assert daemon.get()[0] == 404
        assert daemon.ask("GET", "/api/ray/version")[0] == 200
        # it is ready with the first one, and who waits for a proxy that has never listened is not asked
        eventually(lambda: [proxy["status"] for proxy in daemon.status()["proxies"]] == ["HEALTHY"] * 2)
        port = daemon.settings.http_port
        with socket.create_connection(("127.0.0.1", port)) as client:
            # the kernel will ask whether the client is there
            eventually(lambda: timer_of(port, client.getsockname()[1]) == "keep-alive")
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.errors


def is_refused(daemon: RunningDaemon) -> bool:
    """Whether nobody listens. Who comes in the moment in which the port closes is cut off."""
    try:
        daemon.get()
    except (ConnectionRefusedError, ConnectionResetError) as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def test_without_http_the_data_plane_opens_with_the_first_document(tmp_path: Path, echo: Path) -> None:
    with a_daemon(settings_in(tmp_path, open_http=False)) as daemon:
        with pytest.raises(ConnectionRefusedError):
            daemon.get()
        daemon.deploy(echo)
        assert daemon.get()[0] == 200
        assert daemon.ask("DELETE", "/api/serve/deployments/") == (200, "")
        assert daemon.pids("proxy") + daemon.pids("replica") + daemon.pids("fork") == []
        eventually(lambda: is_refused(daemon))


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, open_http=False)
    with a_daemon(settings) as daemon:
        second = subprocess.run(
            launch.daemon_command(settings), capture_output=True, text=True, timeout=20, check=False
        )
        assert second.returncode == 1
        assert str(daemon.process.pid) in second.stderr
        assert settings.state_dir in second.stderr
        assert running_pid(settings.state_dir) == daemon.process.pid
        assert daemon.is_ready()
    assert running_pid(settings.state_dir) is None


@pytest.mark.parametrize("option", ["http_port", "admin_port"])
def test_a_taken_port_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        said = refusal(settings_in(tmp_path, **{option: port}))
    assert f"127.0.0.1:{port}" in said
    assert f"--{option.replace('_', '-')}" in said
    assert "Traceback" not in said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to somebody else")
@pytest.mark.parametrize("which", ["state_dir", "socket_dir"])
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, which: str) -> None:
    settings = settings_in(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 65534, 65534)
    said = refusal(settings_in(tmp_path, **{which: str(foreign)}))
    assert f"{foreign} belongs to uid 65534" in said
    assert os.listdir(foreign) == []
    assert not os.path.exists(settings.socket_dir)


def test_a_damaged_goal_store_is_refused_in_one_line(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, open_http=False)
    with a_daemon(settings):
        pass
    (Path(settings.state_dir) / "goal.db").write_bytes(b"")
    said = refusal(settings)
    assert "goal.db cannot be used" in said
    assert "Traceback" not in said


@pytest.mark.long
def test_a_full_goal_store_refuses_and_the_accepted_goal_goes_on(tmp_path: Path, echo: Path) -> None:
    with a_daemon(settings_in(tmp_path), {"SERVD_GOAL_STORE_MAX_PAGES": "5"}) as daemon:
        daemon.deploy(echo)
        served = {daemon.get()[1] for _ in range(20)}
        big = {"import_path": "echo:app", "args": {"filling": "x" * 50_000}}
        code, text = daemon.ask("PUT", "/api/serve/deployments/", big)
        assert code == 507
        assert "goal.db" in text
        assert daemon.status()["revision"] == 1
        assert {daemon.get()[1] for _ in range(20)} <= served | set(map(str, daemon.pids("replica")))


def test_the_controller_killed_comes_back_and_nobody_notices(tmp_path: Path, echo: Path) -> None:
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(echo)
        before = sorted(daemon.pids("replica") + daemon.pids("proxy") + daemon.pids("fork server"))
        (controller,) = daemon.pids("controller")
        os.kill(controller, signal.SIGKILL)
        answers = [daemon.get()[0] for _ in range(200)]
        eventually(lambda: set(daemon.pids("controller")) - {controller})
        daemon.wait_until_running()
        assert set(answers) == {200}
        assert sorted(daemon.pids("replica") + daemon.pids("proxy") + daemon.pids("fork server")) == before
        # the adopted ones are in its hands: it sees them die, and says how
        victim = daemon.pids("replica")[0]
        os.kill(victim, signal.SIGKILL)
        dead = eventually(lambda: dead_replicas(daemon))
        assert [(d["pid"], d["signal"]) for d in dead] == [(victim, signal.SIGKILL)]


def dead_replicas(daemon: RunningDaemon) -> list[dict[str, object]]:
    deployments = daemon.status()["applications"]["default"]["deployments"]
    return list(deployments["default_Echo"]["recent_dead_replicas"])


def test_a_fork_server_killed_is_replaced_and_its_replicas_live_on(tmp_path: Path, echo: Path) -> None:
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(echo)
        replicas = daemon.pids("replica")
        (old,) = daemon.pids("fork server")
        os.kill(old, signal.SIGKILL)
        eventually(lambda: set(daemon.pids("fork server")) - {old})
        assert daemon.pids("replica") == replicas
        # how an orphan died comes from the daemon
        os.kill(replicas[0], signal.SIGKILL)
        dead = eventually(lambda: dead_replicas(daemon))
        assert dead[0]["signal"] == signal.SIGKILL
        eventually(lambda: len(daemon.pids("replica")) == 2)
        daemon.wait_until_running()


@pytest.mark.long
def test_the_daemon_killed_takes_all_with_it_and_the_next_one_serves_the_goal(tmp_path: Path, echo: Path) -> None:
    settings = settings_in(tmp_path)
    first = RunningDaemon(settings).ready()
    first.deploy(echo)
    first.process.kill()
    first.process.wait()
    # at once, on the ports that the last ones may still have
    with a_daemon(settings) as second:
        second.wait_until_running()
        assert second.get()[0] == 200
        assert second.status()["revision"] == 1
        eventually(lambda: len(second.pids()) == 6, 10.0)


def test_a_restart_keeps_the_goal_and_a_flag_wins_over_the_stored_option(tmp_path: Path, echo: Path) -> None:
    settings = settings_in(tmp_path)
    with a_daemon(settings) as daemon:
        daemon.deploy(echo)
    with a_daemon(settings_in(tmp_path, http_port=None)) as daemon:
        assert daemon.status()["http"]["port"] == settings.http_port
        daemon.wait_until_running()
    port = free_port()
    with a_daemon(settings_in(tmp_path, http_port=port)) as daemon:
        daemon.wait_until_running()
        assert daemon.get()[0] == 200


@pytest.mark.long
def test_replicas_can_be_spawned_instead_of_forked(tmp_path: Path, echo: Path) -> None:
    with a_daemon(settings_in(tmp_path), {"SERVD_FORK": "0"}) as daemon:
        daemon.deploy(echo)
        assert daemon.get()[1] in map(str, daemon.pids("replica"))


def test_detached_it_goes_on_until_it_is_stopped(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    pid = launch.start_detached(settings, 20).pid
    try:
        assert running_pid(settings.state_dir) == pid
        assert launch.is_answering(settings.socket_dir)
    finally:
        assert launch.stop(settings.state_dir)
    os.waitpid(pid, 0)
    assert not launch.stop(settings.state_dir)
    assert list(titles(settings.state_dir)) == []


def test_detached_it_hands_on_why_it_does_not_start(tmp_path: Path) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(DeployError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*--admin-port"):
            launch.start_detached(settings_in(tmp_path, admin_port=port), 20)


def test_tied_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    script = (
        "import json, os, sys\n"
        "from servd.daemon import launch\nfrom servd.daemon.boot import parse_settings\n"
        "daemon = launch.start_tied(parse_settings(sys.argv[1]), 20)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    text = launch.daemon_command(settings)[-1]
    died = subprocess.run([sys.executable, "-c", script, text], timeout=30, check=False)
    assert died.returncode == -signal.SIGKILL
    eventually(lambda: list(titles(settings.state_dir)) == [], 10.0)
    eventually(lambda: running_pid(settings.state_dir) is None)


SHARING = """
from multiprocessing import get_context, shared_memory
from servd import deployment

@deployment
def share(request):
    block = shared_memory.SharedMemory(create=True, size=8)
    child = get_context("spawn").Process(target=print)
    child.start()
    child.join()
    block.close()
    block.unlink()
    return str(child.exitcode)

app = share.bind()
"""


def test_multiprocessing_is_the_applications_to_use(tmp_path: Path) -> None:
    code_dir = tmp_path / "code"
    code_dir.mkdir()
    (code_dir / "sharing.py").write_text(SHARING)
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(code_dir, "sharing:app")
        children = [pid for pid, parent in parents().items() if parent == daemon.process.pid]
        assert children == daemon.pids("controller"), "nothing beside the controller"
        assert daemon.get() == (200, "0")


@pytest.mark.long
def test_a_socket_directory_that_goes_with_the_controller_is_made_anew(tmp_path: Path, echo: Path) -> None:
    with a_daemon(settings_in(tmp_path, open_http=False)) as daemon:
        (controller,) = daemon.pids("controller")
        shutil.rmtree(daemon.settings.socket_dir)
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: _answers(daemon))
        daemon.deploy(echo)
        assert daemon.get()[0] == 200


def _answers(daemon: RunningDaemon) -> bool:
    try:
        return bool(daemon.status())
    except OSError:
        return False
