"""Log files: their lines and their rotation."""

import json
import logging
import logging.config
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servd.commands import log_files
from servd.observability import log_file, logs
from servd.observability.described import LONGEST_MESSAGE
from servd.observability.log_file import LogFile, directory_trouble, forget_dead, make_directory
from servd.observability.log_lines import Wish, head_of


@pytest.fixture(autouse=True)
def _untouched_loggers() -> Iterator[None]:
    yield
    for name in logs.LOGGER_NAMES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    logs._own_levels.clear()


def test_line_has_level_time_component_request_and_place(tmp_path: Path) -> None:
    logs.setup(
        "replica", "app_D#abcdef", str(tmp_path), "x.log", request_fields=lambda: ("rid", "", "", "/r", "app", "")
    )
    logging.getLogger("ray.serve").info("hello %s", "there")
    line = (tmp_path / "serve" / "x.log").read_text()
    assert line.startswith("INFO ")
    assert " replica app_D#abcdef rid /r app test_logs.py:" in line
    assert line.endswith(" - hello there\n")


@pytest.mark.parametrize("is_json", [False, True])
def test_a_line_of_a_trace_names_it(tmp_path: Path, is_json: bool) -> None:
    fields = ("rid", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "/r", "app", "")
    logs.setup("replica", "app_D#abcdef", str(tmp_path), "x.log", request_fields=lambda: fields)
    logs.configure({"encoding": "JSON"} if is_json else {})
    logging.getLogger("ray.serve").info("hello")
    line = (tmp_path / "serve" / "x.log").read_text()
    if is_json:
        found = json.loads(line)
        assert (
            tuple(found[name] for name in ("request_id", "trace_id", "span_id", "route", "application")) == fields[:5]
        )
        assert (found["deployment"], found["replica"], found["component_id"]) == ("app_D", "abcdef", "app_D#abcdef")
    else:
        assert f" replica app_D#abcdef rid trace_id={fields[1]} span_id={fields[2]} /r app test_logs.py:" in line
    head = head_of(line)
    assert head is not None
    assert Wish(request="rid", app="app").fits(head)


def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_JSON_LOGGING", "1")
    logs.setup("controller", "1", str(tmp_path), "x.log")
    logging.getLogger("servd.anything").warning("two\nlines")
    fields = json.loads((tmp_path / "serve" / "x.log").read_text())
    assert (fields["levelname"], fields["component_id"], fields["message"]) == ("WARNING", "1", "two\nlines")
    assert "replica" not in fields


@pytest.mark.parametrize("is_json", [False, True])
def test_lines_name_the_logger_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_json: bool
) -> None:
    # a test before may have made it another name of servd's own logger
    monkeypatch.delitem(logging.Logger.manager.loggerDict, "ray.serve", raising=False)
    logs.setup("replica", "app_D#abcdef", str(tmp_path), "x.log")
    logs.configure({"encoding": "JSON" if is_json else "TEXT", "additional_log_standard_attrs": ["name"]})
    logging.getLogger("servd").info("as it is")
    monkeypatch.setitem(logging.Logger.manager.loggerDict, "ray.serve", logging.getLogger("servd"))
    logging.getLogger("ray.serve").info("of Ray Serve")
    logging.getLogger("servd.rest").info("of servd")
    lines = (tmp_path / "serve" / "x.log").read_text().splitlines()
    names = ["servd", "ray.serve", "servd.rest"]
    for line, name in zip(lines, names, strict=True):
        assert (json.loads(line)["name"] == name) if is_json else (f" name={name} - " in line)


def test_extras_are_fields_of_json_lines(tmp_path: Path) -> None:
    logs.setup("replica", "app_D#abcdef", str(tmp_path), "x.log")
    logs.configure({"encoding": "JSON", "additional_log_standard_attrs": ["cart"]})
    logger = logging.getLogger("ray.serve")
    logger.info("sold", extra={"cart": {"plums": 2}, "lineno_of_bill": 4, "replica": "mine", "shop": object()})
    logger.info("kept", extra={"ray_serve_extra_fields": {"shelf": 3, "levelname": "mine"}})
    logger.info("odd", extra={"ray_serve_extra_fields": [1]})
    sold, kept, odd = map(json.loads, (tmp_path / "serve" / "x.log").read_text().splitlines())
    assert (sold["cart"], sold["lineno_of_bill"], sold["replica"]) == ({"plums": 2}, 4, "abcdef")
    assert sold["shop"].startswith("<object object")
    assert (kept["shelf"], kept["levelname"], kept["cart"]) == (3, "INFO", None)
    assert odd["ray_serve_extra_fields"] == [1]
    assert list(odd)[:2] == ["levelname", "asctime"]


@pytest.mark.parametrize("is_json", [False, True])
def test_a_record_marked_as_an_access_line_goes_with_these(tmp_path: Path, is_json: bool) -> None:
    logs.setup("replica", "app_D#abcdef", str(tmp_path), "x.log")
    for has_lines in (True, False):
        logs.configure({"encoding": "JSON" if is_json else "TEXT", "enable_access_log": has_lines})
        logging.getLogger("ray.serve").info("marked", extra={"serve_access_log": True})
        logging.getLogger("ray.serve").info("plain", extra={"serve_access_log": False})
    text = (tmp_path / "serve" / "x.log").read_text()
    assert (text.count("marked"), text.count("plain"), text.count("serve_access_log")) == (1, 2, 0)


def test_detached_daemon_writes_nothing_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", "0")
    logs.setup("controller", "1", str(tmp_path), "x.log")
    logging.getLogger("servd").error("only in the file")
    assert capfd.readouterr().err == ""


def test_a_quiet_daemon_hides_its_own_lines_and_nothing_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVD_LOG_TO_STDERR", "warning")
    logs.setup("replica", "1", str(tmp_path), "x.log")
    logging.getLogger("servd.controller.main").info("life cycle")
    logging.getLogger("servd.controller.main").warning("trouble")
    # the second is what the first is an alias of, where Ray's names are installed
    for name in ("ray.serve", "servd"):
        logging.getLogger(name).info("the user's")
    shown = capfd.readouterr().err
    assert [line.partition(" - ")[2] for line in shown.splitlines()] == ["trouble", "the user's", "the user's"]
    assert "life cycle" in (tmp_path / "serve" / "x.log").read_text()


def test_rotation_keeps_the_newest_backups(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log", max_bytes=10, backups=2)
    for number in range(4):
        file.write(b"line %04d\n" % number)
    file.close()
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"x.log": "line 0003\n", "x.log.1": "line 0002\n", "x.log.2": "line 0001\n"}


def test_two_writers_of_one_file_rotate_once(tmp_path: Path) -> None:
    first = LogFile(tmp_path / "x.log", max_bytes=10, backups=3)
    second = LogFile(tmp_path / "x.log", max_bytes=10, backups=3)
    first.write(b"aaaaaaaaa\n")
    first.write(b"b\n")
    second.write(b"c\n")
    first.close()
    second.close()
    assert (tmp_path / "x.log").read_text() == "b\nc\n"
    assert not (tmp_path / "x.log.2").exists()


def test_a_logging_config_changes_level_and_encoding(tmp_path: Path) -> None:
    logs.setup("replica", "r", str(tmp_path), "x.log")
    logger = logging.getLogger("servd.x")
    assert logs.configure({}) == logs.Style(False, logging.INFO, True)
    logger.debug("no")
    assert logs.configure({"encoding": "JSON", "log_level": "DEBUG"}) == logs.Style(True, logging.DEBUG, True)
    logger.debug("yes")
    assert not logs.configure({"log_level": "ERROR"}).has_access_log
    logger.warning("no")
    assert not logs.configure({"enable_access_log": False}).has_access_log
    (line,) = (tmp_path / "serve" / "x.log").read_text().splitlines()
    assert json.loads(line)["message"] == "yes"


def test_what_the_user_set_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a test before may have made it another name of servd's own logger
    monkeypatch.delitem(logging.Logger.manager.loggerDict, "ray.serve", raising=False)
    logs.setup("fork_server", "f", str(tmp_path), "f.log")
    alias = logging.getLogger("ray.serve")
    alias.setLevel(logging.ERROR)
    alias.addHandler(caplog.handler)
    root = logging.getLogger().handlers[:], logging.getLogger().level
    logs.setup("replica", "r", str(tmp_path), "r.log")
    logs.configure({"log_level": "DEBUG"})
    alias.warning("too little")
    alias.error("enough")
    logging.getLogger("servd").debug("ours")
    assert caplog.messages == ["enough"]
    assert len((tmp_path / "serve" / "r.log").read_text().splitlines()) == 2
    assert not (tmp_path / "serve" / "f.log").read_text()
    assert (logging.getLogger().handlers, logging.getLogger().level) == root


def test_a_users_configuration_does_not_silence_us(tmp_path: Path) -> None:
    before = logging.getLogger("ray.serve")
    logging.config.dictConfig({"version": 1})
    assert before.disabled
    logs.setup("replica", "r", str(tmp_path), "r.log")
    before.info("here")
    assert (tmp_path / "serve" / "r.log").read_text().endswith(" - here\n")


@pytest.mark.parametrize("is_alias", [False, True])
@pytest.mark.parametrize("named", [{}, {"ray.serve": {"level": "INFO"}}, {"ray": {"handlers": []}}])
def test_a_users_configuration_at_run_time_does_not_silence_us(
    named: dict[str, Any], is_alias: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(logging.Logger.manager.loggerDict, "ray.serve", raising=False)
    if is_alias:
        # as it is where Ray Serve's modules can be imported
        monkeypatch.setitem(logging.Logger.manager.loggerDict, "ray.serve", logging.getLogger("servd"))
    logs.setup("replica", "r", str(tmp_path), "r.log")
    before = logging.getLogger("servd.replica.life")
    loaded_later = logging.getLogger(f"servd.replica.later{is_alias}{sorted(named)}")
    users = logging.getLogger(f"users.module{is_alias}{sorted(named)}")
    logging.config.dictConfig({"version": 1, "loggers": named})
    before.info("here")
    loaded_later.info("and here")
    text = (tmp_path / "serve" / "r.log").read_text()
    assert [line.rpartition(" - ")[2] for line in text.splitlines()] == ["here", "and here"]
    # its own are its own business
    assert users.disabled


def test_of_dead_replicas_the_newest_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "serve"
    folder.mkdir()
    for number in range(6):
        (folder / logs.replica_file("app_D", f"app_D#{number}")).touch()
        os.utime(folder / logs.replica_file("app_D", f"app_D#{number}"), (number, number))
    (folder / "controller_1.log").touch()
    forget_dead(str(tmp_path), {logs.replica_file("app_D", "app_D#0")}, kept=2)
    left = sorted(name.rpartition("#")[2] for name in os.listdir(folder))
    assert left == ["0.log", "4.log", "5.log", "controller_1.log"]
    forget_dead(str(tmp_path / "nowhere"), set())
    (folder / logs.replica_file("app_D", "app_D#4")).write_bytes(b"x" * 100)
    os.utime(folder / logs.replica_file("app_D", "app_D#4"), (4, 4))
    forget_dead(str(tmp_path), {logs.replica_file("app_D", "app_D#0")}, kept_bytes=99)
    assert sorted(name.rpartition("#")[2] for name in os.listdir(folder)) == ["0.log", "5.log", "controller_1.log"]


def test_a_file_in_a_directory_of_its_own_is_found_among_the_others_too(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "logs", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    name = logs.replica_file("app_D", "app_D#abcdef")
    usual = root / "serve" / name
    file = LogFile(usual, max_bytes=10, backups=2)
    file.move(elsewhere / name, usual)
    assert os.listdir(usual.parent) == [name], "nothing was in it"
    for word in (b"first\n", b"second\n", b"third\n"):
        file.write(word)
    assert [usual.read_bytes(), Path(f"{usual}.1").read_bytes(), Path(f"{usual}.2").read_bytes()] == [
        b"third\n",
        b"second\n",
        b"first\n",
    ]
    assert usual.resolve() == elsewhere / name
    # and back, in the midst
    file.move(usual)
    file.write(b"home\n")
    assert (usual.read_bytes(), usual.is_symlink()) == (b"home\n", False)
    assert usual.with_suffix(".before-1.log").read_bytes() == b"third\n"
    # what is dead goes, wherever it lies; a link to what is gone already is in nobody's way
    (elsewhere / f"{name}.2").unlink()
    forget_dead(str(root), set(), kept=0)
    assert os.listdir(root / "serve") == os.listdir(elsewhere) == []


@pytest.mark.parametrize("in_the_way", ["a link", "a pipe", "an open directory"])
def test_nobody_else_says_what_a_replica_writes_to(tmp_path: Path, in_the_way: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    precious, path = tmp_path / "precious", elsewhere / "x.log"
    precious.touch()
    if in_the_way == "a link":
        path.symlink_to(precious)
    elif in_the_way == "a pipe":
        os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if in_the_way == "a pipe" else -1
    file = LogFile(tmp_path / "logs" / "serve" / "x.log")
    if in_the_way == "an open directory":
        elsewhere.chmod(0o770)
    file.move(path, file.path)
    file.write(b"lost\n")
    if reader >= 0:
        assert os.read(reader, 10) == b""
        os.close(reader)
    assert precious.read_bytes() == b""
    assert in_the_way != "an open directory" or not path.exists()
    file.close()


def test_a_directory_that_others_may_write_to_is_none_for_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory_trouble(str(tmp_path)) == ""
    tmp_path.chmod(0o720)
    assert directory_trouble(str(tmp_path)).endswith(f"others may (mode 720); chmod go-w {tmp_path}")
    tmp_path.chmod(0o1702)
    assert "others may (mode 1702)" in directory_trouble(str(tmp_path))
    tmp_path.chmod(0o755)
    assert directory_trouble(str(tmp_path)) == ""
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: -1)
    assert f"it belongs to uid {tmp_path.stat().st_uid}" in directory_trouble(str(tmp_path))


def test_a_directory_that_is_opened_to_others_later_is_left_with_a_line(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    usual = tmp_path / "logs" / "serve" / "x.log"
    file = LogFile(usual)
    file.move(elsewhere / "x.log", usual)
    file.write(b"first\n")
    elsewhere.chmod(0o770)
    # as a rotation from outside does
    (elsewhere / "x.log").rename(elsewhere / "x.log.old")
    file.write(b"second\n")
    said, second = usual.read_text().splitlines()
    assert said == (
        f"logs_dir_not_used reason=does not write in the directory {elsewhere}: others may (mode 770); "
        f"chmod go-w {elsewhere} instead={usual.parent}"
    )
    assert second == "second"
    assert (elsewhere / "x.log.old").read_bytes() == b"first\n"
    file.close()


def test_nothing_is_lost_when_the_directory_of_logs_changes(tmp_path: Path) -> None:
    root, name = tmp_path / "logs", logs.replica_file("app_D", "app_D#abcdef")
    usual = root / "serve" / name
    first, second = (tmp_path / name for name in ("first", "second"))
    for directory in (first, second):
        directory.mkdir(mode=0o700)
    file = LogFile(usual, max_bytes=8, backups=2)
    numbers = iter(range(1, 99))

    def written() -> list[int]:
        """What is found from the usual place."""
        return sorted(int(path.read_bytes()[5:]) for path in usual.parent.iterdir())

    def write_two() -> None:
        for _ in range(2):
            file.write(b"line %d\n" % next(numbers))

    write_two()
    for place in (first, second):
        file.move(place / name, usual)
        write_two()
    assert written() == [1, 2, 3, 4, 5, 6]
    # back, where it goes on: no file has two names there
    file.move(first / name, usual)
    write_two()
    assert written() == [1, 2, 4, 5, 6, 7, 8], "3 is older than what it may rotate to"
    file.move(usual)
    write_two()
    assert written() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    # of a living replica nothing is too old
    forget_dead(str(root), {name}, kept=0)
    assert written() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    found = {path for pattern in log_files.patterns(None, "app_D#abcdef") for path in root.glob(pattern)}
    assert len(found) == 4
    forget_dead(str(root), set(), kept=0)
    assert [os.listdir(directory) for directory in (usual.parent, first, second)] == [[], [], []]


def test_the_usual_place_may_be_called_otherwise(tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(tmp_path)
    usual = tmp_path / "logs" / "serve" / "x.log"
    file = LogFile(usual)
    file.write(b"one\n")
    for directory in (tmp_path / "name" / "logs" / "serve", tmp_path / "logs" / "serve" / ".." / "serve"):
        file.move(directory / "x.log", usual)
        file.write(b"two\n")
    assert (usual.is_symlink(), usual.read_bytes(), os.listdir(usual.parent)) == (False, b"one\ntwo\ntwo\n", ["x.log"])
    file.close()


def test_a_look_at_a_directory_for_logs_makes_none(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    assert directory_trouble(str(wanted)) == ""
    assert os.listdir(tmp_path) == []
    assert (make_directory(str(wanted)), wanted.stat().st_mode & 0o777) == ("", 0o700)
    (wanted / "file").touch()
    below = wanted / "file" / "below"
    assert directory_trouble(str(below)) == f"cannot make the directory {below}: {wanted / 'file'} is no directory"
    assert make_directory(str(below)) == f"cannot make the directory {below}: Not a directory"


def test_a_link_of_somebody_elses_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "precious").touch()
    (tmp_path / "serve" / "deployment_a_a#x.log").symlink_to(tmp_path / "precious")
    forget_dead(str(tmp_path), set(), kept=0)
    assert sorted(os.listdir(tmp_path)) == ["precious", "serve"]


def test_a_file_that_was_renamed_or_removed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    first, second = LogFile(path), LogFile(path)
    number = first.fileno()
    first.write(b"one\n")
    path.rename(tmp_path / "x.log-20261128")
    first.write(b"two\n")
    second.write(b"three\n")
    assert path.read_text() == "two\nthree\n"
    assert (tmp_path / "x.log-20261128").read_text() == "one\n"
    path.unlink()
    first.write(b"four\n")
    # somebody who rotates may also make the new one
    path.rename(tmp_path / "old")
    path.touch()
    second.write(b"five\n")
    os.write(number, b"six\n")
    first.write(b"seven\n")
    assert path.read_text() == "five\nseven\n"
    assert (tmp_path / "old").read_text() == "four\nsix\n"
    assert first.fileno() == number
    first.close()
    second.close()


@pytest.mark.parametrize("obstacle", ["a file in the way", "no state directory"])
def test_without_a_place_for_the_file_lines_are_lost_and_later_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    monkeypatch.setattr(log_file, "RETRY_S", 0.0)
    state = tmp_path / "state"
    if obstacle == "a file in the way":
        state.write_text("")
    path = state / "logs" / "serve" / "x.log"
    file = LogFile(path)
    number = file.fileno()
    file.write(b"lost\n")
    assert not (tmp_path / "state" / "logs").exists()
    if obstacle == "a file in the way":
        state.unlink()
    state.mkdir()
    file.write(b"kept\n")
    assert (path.read_bytes(), file.fileno()) == (b"kept\n", number)
    file.close()


def test_half_a_line_on_a_full_disk_is_not_the_begin_of_the_next_one(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # as a full disk does it: some of a line fits, and nothing behind it
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        for line in (b"INFO first\n", b"INFO second\n", b"INFO third\n"):
            file.write(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write(b"INFO fourth\n")
    file.write(b"INFO fifth\n")
    assert file.path.read_text().splitlines() == ["INFO first", "INFO ", "INFO fourth", "INFO fifth"]


def test_what_is_printed_without_an_end_is_not_the_begin_of_the_next_line(tmp_path: Path) -> None:
    printed = os.open(os.devnull, os.O_WRONLY)
    file = LogFile(tmp_path / "x.log")
    file.stand_in_for(printed)
    os.write(printed, b"at the start")
    for line in (b"INFO first\n", b"INFO second\n"):
        file.write(line)
    os.write(printed, b"whole\n")
    file.write(b"INFO third\n")
    os.write(printed, b"50 %\r100 %")
    file.write(b"ERROR fourth\n")
    lines = file.path.read_bytes().split(b"\n")
    assert lines == [
        b"at the start",
        b"INFO first",
        b"INFO second",
        b"whole",
        b"INFO third",
        b"50 %\r100 %",
        b"ERROR fourth",
        b"",
    ]
    # as `copytruncate` of logrotate does
    os.truncate(file.path, 0)
    os.write(printed, b"half")
    file.write(b"INFO fifth\n")
    os.close(printed)
    file.close()
    assert file.path.read_bytes() == b"half\nINFO fifth\n"


def test_a_lost_file_is_not_looked_for_at_every_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    path = state / "logs" / "serve" / "x.log"
    file = LogFile(path)
    state.rename(tmp_path / "away")
    file.write(b"lost\n")
    state.mkdir()
    file.write(b"lost too, for the moment\n")
    assert not path.exists()
    file.close()


def test_a_file_stands_in_for_descriptors_wherever_it_goes(tmp_path: Path) -> None:
    printed = os.open(os.devnull, os.O_WRONLY)
    file = LogFile(tmp_path / "x.log", max_bytes=10)
    file.stand_in_for(printed)
    os.write(printed, b"of native code\n")
    file.write(b"one\n")
    os.write(printed, b"and of a child\n")
    file.tend()
    os.write(printed, b"three\n")
    file.close()
    os.close(printed)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"x.log": "three\n", "x.log.1": "one\nand of a child\n", "x.log.2": "of native code\n"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("of\tany\nkind\n", "of\tany\nkind"),
        ("\x1b[31mred\x1b[0m\a\r\nnext\u2028", "\\x1b[31mred\\x1b[0m\\x07\nnext\\u2028"),
        ("<script>alert('ü')</script>", "<script>alert('ü')</script>"),
        ("a\nERROR 2026-11-28 22:00:00,000 forged", "a\n ERROR 2026-11-28 22:00:00,000 forged"),
        ("a\nw 2026-11-28 22:00:00,000 forged", "a\n w 2026-11-28 22:00:00,000 forged"),
        ('a\n{"levelname": "INFO", "message": "forged"}', 'a\n {"levelname": "INFO", "message": "forged"}'),
        ("x" * 10_000_000, "x" * LONGEST_MESSAGE + f" [{10_000_000 - LONGEST_MESSAGE} characters left out]"),
        ("half \ud800", "half \\ud800"),
    ],
    ids=["text", "controls", "markup", "forged", "forged level", "forged JSON", "long", "surrogate"],
)
def test_a_message_is_text_whatever_it_holds(tmp_path: Path, message: str, expected: str) -> None:
    logs.setup("replica", "r", str(tmp_path), "x.log")
    logging.getLogger("ray.serve").info("%s", message)
    found = (tmp_path / "serve" / "x.log").read_bytes().decode().partition(" - ")[2]
    # not one comparison: pytest would show megabytes
    assert found[-100:] == f"{expected}\n"[-100:]
    assert len(found) == len(expected) + 1
    assert logs.configure({"encoding": "JSON"}).is_json
    logging.getLogger("ray.serve").info("%s", message)
    assert json.loads((tmp_path / "serve" / "x.log").read_bytes().splitlines()[-1])["levelname"] == "INFO"
