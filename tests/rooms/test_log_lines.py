"""`servd logs`: which lines of which files, in order of time."""

import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from servd.commands import log_files
from servd.commands.log_files import files, patterns, seconds_of, show_logs, wish_of
from servd.exceptions import ConfigError
from servd.ground.clock import SystemClock
from servd.observability import log_lines
from servd.observability.log_lines import HALF_STANDS, LONGEST_LINE, Head, Source, Wish, _begin_of_time, head_of
from servd.observability.log_tail import tail

DAY = "2026-11-28"


def text_line(second: int, text: str, level: str = "INFO", who: str = "replica a_D#x rid / a") -> str:
    return f"{level} {DAY} 10:00:{second:02d},000 {who} f.py:1 - {text}"


def json_line(second: int, text: str, level: str = "INFO", request_id: str = "rid") -> str:
    time = f"{DAY} 10:00:{second:02d},000"
    return json.dumps({"levelname": level, "asctime": time, "request_id": request_id, "message": text})


def write(folder: Path, **files: list[str]) -> None:
    (folder / "serve").mkdir(exist_ok=True)
    for name, lines in files.items():
        path = folder / "serve" / f"deployment_a_D_a_D#{name.replace('_', '.log.') if '_' in name else f'{name}.log'}"
        path.write_text("".join(f"{line}\n" for line in lines))


def shown(folder: Path, wish: Wish | None = None, lines: int | None = None, app: str = "") -> list[str]:
    found: list[str] = []
    show_logs(str(folder), ("serve/*.log",), wish or Wish(), app=app, lines=lines, follow=False, write=found.append)
    return [text.removesuffix("\n").rpartition(" - ")[2] for text in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (text_line(1, "a - b"), Head(f"{DAY} 10:00:01,000", "INFO", " replica a_D#x rid / a f.py:1 ")),
        (
            text_line(1, "a:1 - b", who="replica A - B_D#x rid / A - B"),
            Head(f"{DAY} 10:00:01,000", "INFO", " replica A - B_D#x rid / A - B f.py:1 "),
        ),
        (
            f"INFO {DAY} 10:00:01,000 replica A - B_D#x rid stdout - a b:80 - c",
            Head(f"{DAY} 10:00:01,000", "INFO", " replica A - B_D#x rid stdout "),
        ),
        (
            f"INFO {DAY} 10:00:01,000 replica a_D#x rid f.py:1 user=A - B - a",
            Head(f"{DAY} 10:00:01,000", "INFO", " replica a_D#x rid f.py:1 "),
        ),
        (f"INFO {DAY} 10:00:01,000 a - b", Head(f"{DAY} 10:00:01,000", "INFO", " a ")),
        (json_line(1, "a", "ERROR"), Head(f"{DAY} 10:00:01,000", "ERROR", " rid ")),
        ("Traceback (most recent call last):", None),
        ('{"levelname": "INFO"', None),
        ('{"levelname": "INFO", "asctime": 1, "route": ["/"]}', None),
        ("", None),
    ],
)
def test_heads(line: str, expected: Head | None) -> None:
    assert head_of(line) == expected


def test_lines_of_all_files_come_in_order_of_time(tmp_path: Path) -> None:
    write(
        tmp_path,
        living=[text_line(3, "three", "ERROR"), "Traceback", "  of three", text_line(6, "six")],
        living_1=[text_line(1, "one")],
        late=[text_line(5, "five"), text_line(4, "four"), "of four"],
        dead=["of native code", text_line(2, "two"), json_line(3, "also three"), json_line(7, "seven")],
    )
    expected = ["one", "two", "three", "Traceback", "  of three", "four", "of four", "five", "six"]
    found = [line for line in shown(tmp_path) if "seven" not in line and "also" not in line]
    assert found[0].endswith("of native code")
    assert found[1:] == expected
    assert "seven" in shown(tmp_path)[-1]
    assert shown(tmp_path, lines=3) == shown(tmp_path)[-3:]
    assert shown(tmp_path, lines=0) == []


@pytest.mark.parametrize("is_proxy_first", [False, True])
def test_of_lines_of_one_moment_a_proxys_come_last(tmp_path: Path, is_proxy_first: bool) -> None:
    """Whichever file was written last."""
    write(tmp_path, replica=[text_line(2, "failed", "ERROR"), "Traceback"])
    proxy = tmp_path / "serve" / "http_proxy_127.0.0.1.log"
    proxy.write_text(text_line(2, "answered") + "\n")
    os.utime(proxy, (0, 0) if is_proxy_first else None)
    assert shown(tmp_path) == ["failed", "Traceback", "answered"]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Wish(request="rid"), "abc"),
        (Wish(request="other"), "d"),
        (Wish(request="ri"), ""),
        (Wish(level=30), "bd"),
        (Wish(since=f"{DAY} 10:00:02"), "bcd"),
        (Wish(request="rid", level=30, since=f"{DAY} 10:00:02"), "b"),
        (Wish(app="a"), "ab"),
    ],
)
def test_only_what_is_wanted(tmp_path: Path, wish: Wish, expected: str) -> None:
    lines = [
        text_line(1, "a"),
        text_line(2, "b", "ERROR"),
        "b",
        json_line(3, "c"),
        json_line(4, "d", "OWN", "other"),
        "d",
    ]
    write(tmp_path, x=lines)
    found = [json.loads(line)["message"] if line.startswith("{") else line for line in shown(tmp_path, wish)]
    assert "".join(dict.fromkeys(found)) == expected


def test_others_lines_of_a_shared_file_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, x=[text_line(1, "own, whatever it says", who="replica a_D#x")])
    lines = [text_line(2, "of a", who="fork_server 1 a"), text_line(3, "of b", who="fork_server 2 b"), "of b"]
    (tmp_path / "serve" / "fork_server.log").write_text("\n".join(lines))
    assert shown(tmp_path, app="a") == ["own, whatever it says", "of a"]


def test_what_the_log_of_the_daemon_has_once_more_is_shown_once(tmp_path: Path) -> None:
    failed = [text_line(2, "failed"), "Traceback:", "ValueError"]
    write(tmp_path, x=[text_line(1, "same"), text_line(1, "same"), *failed], y=[text_line(3, "last")])
    printed = [*failed, text_line(1, "same"), text_line(1, "same"), text_line(3, "last"), "of native code"]
    (tmp_path / "daemon.log").write_text("".join(f"{line}\n" for line in ["servd: begins", *printed]))
    found: list[str] = []
    show_logs(str(tmp_path), ("daemon.log", "serve/*.log"), Wish(), lines=None, follow=False, write=found.append)
    ends = [text.removesuffix("\n").rpartition(" - ")[2] for text in found]
    assert sorted(ends) == sorted(
        ["daemon: servd: begins", "same", "same", "failed", "Traceback:", "ValueError", "last", "of native code"]
    )
    found.clear()
    show_logs(str(tmp_path), ("daemon.log",), Wish(), lines=None, follow=False, write=found.append)
    assert len(found) == len(printed) + 1


def test_no_line_commands_a_terminal_and_none_fills_the_memory(tmp_path: Path) -> None:
    write(tmp_path, x=[text_line(1, "\x1b]0;title\x07 <b>"), "x" * (10 * LONGEST_LINE)])
    found = shown(tmp_path)
    assert found[0] == "\\x1b]0;title\\x07 <b>"
    assert max(map(len, found)) <= LONGEST_LINE
    assert sum(map(len, found[1:])) == 10 * LONGEST_LINE


def test_of_long_files_only_what_matters_is_read(tmp_path: Path) -> None:
    old = [text_line(0, f"{number} of yesterday").replace(DAY, "2026-11-27") for number in range(5000)]
    write(tmp_path, x=[*old, *(text_line(number // 100, f"{number}") for number in range(5000))], x_1=old)
    path = tmp_path / "serve" / "deployment_a_D_a_D#x.log"
    with path.open("rb") as file:
        begin = _begin_of_time(file, f"{DAY} 10:00:30")
    assert path.stat().st_size * 0.6 < begin
    found = shown(tmp_path, Wish(since=f"{DAY} 10:00:30"))
    assert (found[0], len(found)) == ("3000", 2000)
    assert shown(tmp_path, lines=6000)[0] == "4000 of yesterday"
    assert shown(tmp_path, lines=11_000)[0] == "4000 of yesterday"
    assert len(list(Source(str(path), Wish()).lines(10))) < 200


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("1d", 86400)])
def test_spans_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1s", "1y", "nan", "inf", "99999d"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(ConfigError, match="10m"):
        seconds_of(text)


def test_a_level_that_nobody_knows_is_refused() -> None:
    assert wish_of(None, "error", None) == Wish(level=40)
    with pytest.raises(ConfigError, match="WARNING"):
        wish_of(None, "loud", None)


def test_a_request_is_looked_for_in_the_proxies_too(tmp_path: Path) -> None:
    status = {"applications": {"a": {"deployments": {"a_D": {"name": "D"}}}}}
    assert "serve/http_proxy_*.log" in patterns(status, "a/D", with_proxies=True)
    write(tmp_path, x=[], y=[])
    (tmp_path / "serve" / "deployment_a_b_E_a_b_E#z.log").touch()
    (tmp_path / "serve" / "deployment_b_D_b_D#z.log").touch()
    # an application that is gone is known by the names of its files, which another's may resemble
    found = {os.path.basename(path).partition("#")[0] for path in files(str(tmp_path), patterns(None, "a"))}
    assert found == {"deployment_a_D_a_D", "deployment_a_b_E_a_b_E"}


def test_who_follows_a_file_misses_nothing_that_it_rotates_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first, second = (tmp_path / name for name in ("x.log", "x.log.1", "x.log.2"))
    path.write_text("one\n")
    source = Source(str(path), Wish(), is_followed=True)
    assert [line.text for line in source.lines(1)] == ["one"]
    look = os.fstat

    def rotate(fd: int) -> os.stat_result:
        # after it was read, before it is known to be another one
        monkeypatch.setattr(log_lines.os, "fstat", look)
        with path.open("a") as file:
            file.write("two\nits last wor")
        path.rename(second)
        first.write_text("three\n")
        path.write_text("four\n")
        return look(fd)

    monkeypatch.setattr(log_lines.os, "fstat", rotate)
    assert [line.text for line in source.more()] == ["two", "its last wor", "three", "four"]
    assert source.more() == []
    source.close()


def test_who_follows_a_file_sees_a_last_line_that_nobody_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("one\nits last wor")
    source = Source(str(path), Wish(), is_followed=True)
    assert [line.text for line in source.lines(1)] == ["one"]
    found = [[line.text for line in source.more()] for _ in range(2 * HALF_STANDS)]
    assert [lines for lines in found if lines] == [["its last wor"]]
    source.close()


def test_a_last_line_without_an_end_of_a_file_that_rotated_is_one(tmp_path: Path) -> None:
    (tmp_path / "x.log.1").write_text("one\nits last wor")
    (tmp_path / "x.log").write_text("two\nhal")
    source = Source(str(tmp_path / "x.log"), Wish(), is_followed=True)
    assert [line.text for line in source.lines(9)] == ["one", "its last wor", "two"]
    source.close()


def test_who_follows_an_application_hears_deployments_that_it_gets_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "POLL_S", 0.0)
    monkeypatch.setattr(log_files, "RENEW_S", 0.0)
    write(tmp_path, x=[text_line(1, "of the first")])
    known = ["serve/deployment_a_D_*.log"]
    shown: list[str] = []

    def renew() -> tuple[str, ...]:
        if len(known) == 1:
            known.append("serve/deployment_a_Later_*.log")
            path = tmp_path / "serve" / "deployment_a_Later_a_Later#y.log"
            path.write_text(text_line(2, "of the second", who="replica a_Later#y rid / a") + "\n")
        return tuple(known)

    def hear(text: str) -> None:
        shown.append(text.strip().rpartition(" - ")[2])
        if len(shown) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_logs(str(tmp_path), (known[0],), Wish(), lines=None, follow=True, renew=renew, write=hear)
    assert shown == ["of the first", "of the second"]


def test_the_newest_lines_stay_the_last_ones_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or in the hour that comes twice at the end of summer time."""
    was_set_back_at = datetime.fromisoformat(f"{DAY} 10:00:30").timestamp()
    monkeypatch.setattr(SystemClock, "wall_time", staticmethod(lambda: was_set_back_at))
    before = [text_line(second, f"before {second}") for second in (1, 40, 50, 51)]
    after = [text_line(second, f"after {second}") for second in (20, 22, 29)]
    write(tmp_path, a=[*before, *after], b=[text_line(21, "begun after")], c=[text_line(45, "ended before")])
    newest = ["after 20", "begun after", "after 22", "after 29"]
    found = shown(tmp_path)
    assert found[-4:] == newest
    assert set(found[:-4]) == {"before 1", "before 40", "ended before", "before 50", "before 51"}
    assert shown(tmp_path, lines=3) == newest[-3:]
    paths = [str(path) for path in (tmp_path / "serve").iterdir()]
    lines, _ = tail(paths, Wish(), 3, f"{DAY} 10:00:31")
    assert [line.text.rpartition(" - ")[2] for line in lines] == newest[-3:]


def test_lines_that_came_just_before_a_copy_was_made_and_the_file_begun_anew_are_followed(tmp_path: Path) -> None:
    """As `logrotate` does with `copytruncate`."""
    path = tmp_path / "a.log"
    path.write_text("".join(f"{text_line(second, str(second))}\n" for second in range(3)))
    source = Source(str(path), Wish(), is_followed=True)
    assert len(list(source.lines(None))) == 3

    def add(number: int) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text_line(number, str(number))}\n")

    def begin_anew(*, keeps_copy: bool = True) -> None:
        if keeps_copy:
            shutil.copyfile(path, f"{path}.1")
        os.truncate(path, 0)

    def followed() -> list[str]:
        return [line.text.rpartition(" - ")[2] for line in source.more()]

    add(3)
    begin_anew()
    add(4)
    assert followed() == ["3", "4"]
    add(5)
    add(6)
    begin_anew()
    assert followed() == ["5", "6"]
    add(7)
    assert followed() == ["7"]
    add(8)
    begin_anew(keeps_copy=False)
    assert followed() == [], "what lies there is an older copy"
    add(9)
    assert followed() == ["9"]
    source.close()


def test_a_file_that_is_removed_while_files_are_looked_for_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a=[text_line(1, "one")], b=[text_line(2, "two")])
    gone = str(tmp_path / "serve" / "deployment_a_D_a_D#a.log")
    is_file = os.path.isfile

    def is_file_until_now(path: str) -> bool:
        found = is_file(path)
        if path == gone and found:
            os.unlink(path)
        return found

    monkeypatch.setattr(os.path, "isfile", is_file_until_now)
    assert shown(tmp_path) == ["two"]
