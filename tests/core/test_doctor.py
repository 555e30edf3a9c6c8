"""`servd doctor`: each fault of a set-up is found, and told with what to do."""

import os
import socket
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from servd.commands import doctor
from servd.commands.doctor import Finding, Port, Verdict
from servd.ground.edition import edition_at
from servd.ground.package import PACKAGE_DIR

HOME = PACKAGE_DIR
LONG = "/" + "x" * 100


def the(found: Finding | Iterable[Finding]) -> Finding:
    """The worst of them."""
    every = [found] if isinstance(found, Finding) else list(found)
    return max(every, key=lambda finding: list(Verdict).index(finding.verdict))


def versions(**known: str) -> Callable[[str], str | None]:
    return known.get


@pytest.mark.parametrize(
    ("found", "verdict", "text", "advice"),
    [
        (doctor.of_python((3, 11), is_free=False), "ok", "Python 3.11", ""),
        (doctor.of_python((3, 10), is_free=False), "fault", "too old", "Python 3.11 or newer"),
        (doctor.of_python((3, 15), is_free=False), "note", "not tested", "try Python 3.14"),
        (doctor.of_python((3, 14), is_free=True), "fault", "free-threaded", "its lock"),
        (doctor.of_kernel("linux", has_pidfd=True), "ok", "Linux", ""),
        (doctor.of_kernel("darwin", has_pidfd=False), "fault", "darwin", "use Linux"),
        (doctor.of_kernel("linux", has_pidfd=False), "fault", "pidfd_open", "Linux 5.3"),
        (doctor.of_package(HOME, "/", "1.0.0", "servd"), "fault", "version 1.0.0", "pip uninstall servd"),
        (doctor.of_package(HOME, "/", None, None), "note", "no command servd", "activate the environment"),
        (doctor.of_package(HOME, os.path.dirname(HOME), None, None), "note", "no command", ""),
        (
            doctor.of_requirements(["uvloop>=0.21", 'httpx>=1; extra == "testing"'], versions(uvloop="1")),
            "note",
            "httpx",
            "pip",
        ),
        (
            doctor.of_requirements(
                ["uvloop>=0.21"],
                versions(uvloop="1", httpx="1", grpcio="1", **{"opentelemetry-exporter-otlp-proto-http": "1"}),
            ),
            "ok",
            "all 1 packages",
            "",
        ),
        (
            doctor.of_requirements(["uvloop>=0.21", "pyzmq"], versions()),
            "fault",
            "uvloop, pyzmq",
            "pip install uvloop pyzmq",
        ),
        (doctor.of_requirements(None, versions()), "note", "not installed", "pip install servd-serve"),
        (doctor.of_socket_dir(LONG, is_running=False), "fault", "too long a path", "environment"),
        (doctor.of_daemon("/s", 7, None), "fault", "pid 7, and does not answer", "servd stop --state-dir /s"),
        (doctor.of_daemon("/s", 7, "0.0.9+x (protocol 1)"), "note", "0.0.9+x", "servd upgrade"),
        (doctor.of_daemon("/s", 7, str(edition_at(HOME))), "ok", "pid 7", ""),
        (doctor.of_state_dir("/proc/version/state"), "fault", "/proc/version is not a directory", "--state-dir"),
        (doctor.of_port(Port("198.51.100.1", 8000, "--http-port")), "fault", "assign", "--http-port"),
    ],
)
def test_what_is_found_and_what_to_do(found: Finding, verdict: str, text: str, advice: str) -> None:
    finding = the(found)
    assert (finding.verdict, text in finding.text, advice in finding.advice) == (verdict, True, True), finding
    assert bool(finding.advice) == (finding.verdict != Verdict.OK)


def test_every_extra_for_users_is_known() -> None:
    extras = tomllib.loads((Path(HOME).parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert doctor.EXTRAS.keys() == extras.keys() - {"dev", "models", "bench", "docs"}
    for extra, (name, _) in doctor.EXTRAS.items():
        assert any(line.startswith(name) for line in extras[extra])


def test_a_file_of_ones_own_that_hides_servd(tmp_path: Path) -> None:
    (tmp_path / "servd.py").touch()
    finding = the(doctor.of_package(HOME, str(tmp_path), None, None))
    assert (finding.verdict, finding.advice) == ("fault", "rename it")


def test_a_state_directory(tmp_path: Path) -> None:
    assert doctor.of_state_dir(str(tmp_path / "new" / "state")).verdict == "ok"
    tmp_path.chmod(0o755)
    assert doctor.of_state_dir(str(tmp_path)).advice == f"chmod 700 {tmp_path}"


def test_left_over_sockets(tmp_path: Path) -> None:
    assert list(doctor.of_socket_dir(str(tmp_path), is_running=False)) == []
    (tmp_path / "admin.sock").touch()
    assert list(doctor.of_socket_dir(str(tmp_path), is_running=True)) == []
    assert "the next `servd start` replaces them" in the(doctor.of_socket_dir(str(tmp_path), is_running=False)).advice


def test_a_port_and_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        finding = doctor.of_port(Port("127.0.0.1", number, "--http-port"))
        assert finding.verdict == "fault"
        assert f"taken by pid {os.getpid()} (" in finding.text
        assert f"servd start --http-port {number + 1 if number < 65535 else number - 1}" in finding.advice
    assert doctor.of_port(Port("127.0.0.1", number, "--http-port")).verdict == "ok"


def test_the_whole_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(doctor.findings(str(tmp_path / "state"), []))
    assert not [finding for finding in found if finding.verdict == Verdict.FAULT], found
    assert doctor.show(found)
    assert capsys.readouterr().out.count("\n") == len(found) + sum(bool(finding.advice) for finding in found) + 1
    assert not doctor.show(
        [Finding(Verdict.FAULT, "a", "b"), Finding(Verdict.NOTE, "c", "d"), Finding(Verdict.NOTE, "e", "f")]
    )
    assert capsys.readouterr().out.splitlines() == [
        "fault  a",
        "       -> b",
        "note   c",
        "       -> d",
        "note   e",
        "       -> f",
        "1 fault and 2 notes found.",
    ]
