"""Log files: their lines and their rotation."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd import logs


@pytest.fixture(autouse=True)
def _untouched_loggers() -> Iterator[None]:
    yield
    for name in logs.LOGGER_NAMES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def test_line_has_level_time_component_request_and_place(tmp_path: Path) -> None:
    logs.setup("replica", "app_D#abcdef", str(tmp_path), "x.log", request_fields=lambda: ("rid", "/r", "app"))
    logging.getLogger("ray.serve").info("hello %s", "there")
    line = (tmp_path / "serve" / "x.log").read_text()
    assert line.startswith("INFO ")
    assert " replica app_D#abcdef rid /r app test_logs.py:" in line
    assert line.endswith(" - hello there\n")


def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_JSON_LOGGING", "1")
    logs.setup("controller", "1", str(tmp_path), "x.log")
    logging.getLogger("servd.anything").warning("two\nlines")
    fields = json.loads((tmp_path / "serve" / "x.log").read_text())
    assert (fields["levelname"], fields["component_id"], fields["message"]) == ("WARNING", "1", "two\nlines")


def test_detached_daemon_writes_nothing_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", "0")
    logs.setup("controller", "1", str(tmp_path), "x.log")
    logging.getLogger("servd").error("only in the file")
    sys.stderr.flush()
    assert capsys.readouterr().err == ""


def test_rotation_keeps_the_newest_backups(tmp_path: Path) -> None:
    file = logs.LogFile(tmp_path / "x.log", max_bytes=10, backups=2)
    for number in range(4):
        file.write(b"line %04d\n" % number)
    file.close()
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"x.log": "line 0003\n", "x.log.1": "line 0002\n", "x.log.2": "line 0001\n"}


def test_two_writers_of_one_file_rotate_once(tmp_path: Path) -> None:
    first = logs.LogFile(tmp_path / "x.log", max_bytes=10, backups=3)
    second = logs.LogFile(tmp_path / "x.log", max_bytes=10, backups=3)
    first.write(b"aaaaaaaaa\n")
    first.write(b"b\n")
    second.write(b"c\n")
    first.close()
    second.close()
    assert (tmp_path / "x.log").read_text() == "b\nc\n"
    assert not (tmp_path / "x.log.2").exists()


def test_access_lines_are_written_together(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    access = logs.AccessLog(logs.LogFile(path), "http_proxy", "127.0.0.1", "forwarder.py:1")
    access.add(0.5, "GET", "200", 0.00123, "rid", "/fruit", "app")
    assert path.read_text() == ""
    access.flush()
    assert path.read_text().endswith(",500 http_proxy 127.0.0.1 rid /fruit app forwarder.py:1 - GET 200 1.2ms\n")
