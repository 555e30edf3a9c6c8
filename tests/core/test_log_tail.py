"""The last lines of many log files: in order, only those that are wanted, and never more than a bounded part is read."""

import os
from pathlib import Path

import pytest

from servd.observability import log_tail
from servd.observability.log_lines import Wish
from servd.observability.log_tail import LONGEST_LINE, MOST_OF_ONE_BYTES, TailLine, tail


def a_line(second: int, text: str, level: str = "INFO", request: str = "") -> str:
    return f"{level} 2026-11-28 22:00:{second:02},000 replica a_D#x {request} app.py:1 - {text}\n"


def written(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.log"
    path.write_text(text)
    return str(path)


def said(lines: list[TailLine]) -> list[str]:
    return [line.text.partition(" - ")[2] or line.text for line in lines]


def test_lines_of_all_files_come_in_order_of_time(tmp_path: Path) -> None:
    first = written(tmp_path, "a", a_line(1, "1") + a_line(4, "4") + a_line(3, "3"))
    second = written(tmp_path, "b", a_line(2, "2", "ERROR") + "Traceback\n  of 2\n" + a_line(5, "5"))
    lines, is_all = tail([first, str(tmp_path / "gone.log"), second], Wish(), 100)
    assert said(lines) == ["1", "2", "Traceback", "  of 2", "3", "4", "5"]
    assert (lines[2].level, lines[2].time, lines[2].source) == ("ERROR", lines[1].time, "b")
    assert is_all
    assert said(tail([first, second], Wish(), 2)[0]) == ["4", "5"]
    assert tail([first], Wish(), 0)[0] == []


def test_of_lines_of_one_moment_a_proxys_come_last(tmp_path: Path) -> None:
    proxy = written(tmp_path, "http_proxy_127.0.0.1", a_line(2, "answered"))
    replica = written(tmp_path, "deployment_a", a_line(2, "failed", "ERROR") + "Traceback\n" + a_line(3, "next"))
    for paths in ([proxy, replica], [replica, proxy]):
        assert said(tail(paths, Wish(), 100)[0]) == ["failed", "Traceback", "answered", "next"]


def test_what_goes_on_with_a_line_shares_its_fate(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a", a_line(1, "one") + "more of one\n" + a_line(2, "two", "ERROR", "id7") + "more of two\n"
    )
    assert said(tail([path], Wish(level=40), 9)[0]) == ["two", "more of two"]
    assert said(tail([path], Wish(request="id7"), 9)[0]) == ["two", "more of two"]


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_huge_line_costs_no_more_than_another(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, "a", a_line(1, "before") + a_line(2, "x" * 2_000_000).rstrip("\n") + ending)
    lines, is_all = tail([path], Wish(), 9)
    assert not is_all
    assert lines == []
    with open(path, "a") as file:
        file.write("\n" + a_line(3, "y" * 100_000) + a_line(4, "\x1b[2J<script>\u2028"))
    lines, _ = tail([path], Wish(), 9)
    assert [len(line.text) < LONGEST_LINE + 100 for line in lines] == [True] * len(lines)
    assert "characters left out]" in lines[-2].text
    assert said(lines)[-1] == "\\x1b[2J<script>\\u2028"


def test_of_many_files_a_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "MOST_FILES", 2)
    paths = [written(tmp_path, str(number), a_line(number, str(number))) for number in (3, 2, 1)]
    assert (said(tail(paths, Wish(), 9)[0]), tail(paths, Wish(), 9)[1]) == (["2", "3"], False)
    Path(paths[0]).write_text("x" * MOST_OF_ONE_BYTES + "\n" + a_line(9, "last"))
    assert said(tail(paths[:1], Wish(), 9)[0]) == ["last"]
    assert os.path.getsize(paths[0]) > MOST_OF_ONE_BYTES


def test_what_a_file_rotated_to_is_not_looked_at(tmp_path: Path) -> None:
    path = written(tmp_path, "a", a_line(1, "one"))
    assert tail([path], Wish(), 9)[1]
    Path(f"{path}.1").write_text(a_line(0, "before"))
    assert (said(tail([path], Wish(), 9)[0]), tail([path], Wish(), 9)[1]) == (["one"], False)
