"""`make run`, without make: the tour of the README, and a port that is taken."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

TOUR = Path(__file__).parents[2] / "tools" / "quickstart.py"


def a_tour(tmp_path: Path, http_port: int, admin_port: int) -> subprocess.Popen[str]:
    ports = ["--http-port", str(http_port), "--admin-port", str(admin_port)]
    command = [sys.executable, str(TOUR), *ports, "--state-dir", str(tmp_path / "state")]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_the_tour_asks_for_a_price_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    admin_port = free_port()
    with a_tour(tmp_path, free_port(), admin_port) as tour:
        assert tour.stdout is not None
        lines = []
        for line in tour.stdout:
            lines.append(line.strip())
            if "until Ctrl-C" in line:
                break
        tour.send_signal(signal.SIGINT)
        rest = tour.stdout.read()
        assert tour.wait(60) == 0, rest
    assert "14" in lines
    assert any(f"http://127.0.0.1:{admin_port}/" in line for line in lines)


@pytest.mark.slow
def test_the_tour_ends_with_its_daemon(tmp_path: Path) -> None:
    with a_tour(tmp_path, free_port(), free_port()) as tour:
        assert tour.stdout is not None
        assert any("until Ctrl-C" in line for line in tour.stdout)
        command = [sys.executable, "-m", "servd", "stop", "--state-dir", str(tmp_path / "state")]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        rest = tour.stdout.read()
        assert tour.wait(60) == 0, rest
    assert "The daemon has ended" in rest


@pytest.mark.slow
def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with a_tour(tmp_path, port, free_port()) as tour:
            output, _ = tour.communicate(timeout=60)
        assert tour.returncode == 1
    assert str(port) in output
    assert "HTTP_PORT=" in output


def test_what_is_no_port_is_answered_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(TOUR), "--http-port", "abc", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "HTTP_PORT=abc is no port: give a number from 1 to 65535, as in make run HTTP_PORT=8080\n"
