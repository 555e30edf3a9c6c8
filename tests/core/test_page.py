"""What the live page is made of and what it is told: no markup from outside, no other host, nothing inline."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from servd.documents.control_plane import DeadReplicaView, InstanceView
from servd.ground.clock import SystemClock
from servd.ground.package import PACKAGE_DIR
from servd.observability.error_groups import ErrorGroup, KeptError
from servd.page import live
from servd.page.files import HEADERS, NAMES, page_file, template
from servd.page.live import BEAT_S, MOST_PAGES, STUCK_S, OpenPages
from servd.page.plain import with_tables
from servd.page.rows import LONGEST_TEXT, Rows, difference, event, rows_of
from tests.wire.fake_plane import an_application, an_instance

PAGE_DIR = Path(PACKAGE_DIR) / "page"
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'&"
ELSEWHERE = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9.-]+\.[a-z]+", re.I)


def an_evil_instance() -> InstanceView:
    """Everything that an application can name or say is markup."""
    app = an_application(EVIL)
    [one] = app.deployments
    [replica] = one.replicas
    dead = DeadReplicaView(f"{EVIL}#x", 1, -9, 2.0, EVIL, 1, (EVIL,), EVIL)
    one = replace(one, bare_name=EVIL, message=EVIL, replicas=(replace(replica, message=EVIL),), recent_dead=(dead,))
    app = replace(app, message=EVIL, standing_message=EVIL, route_prefix=f"/{EVIL}", deployments=(one,))
    return an_instance(running=True, notice=EVIL, applications=(app,))


def an_error(**changes: Any) -> KeptError:
    """Of the deployment `D` of `a`, twice."""
    group = ErrorGroup("e1", "ValueError", "app.py:7 in f", EVIL, "Traceback", "__call__", "/", 2, 10.0, 20.0)
    return KeptError("a", "D", replace(group, **changes))


class Tags(HTMLParser):
    """The tags of a page, and the attributes of all of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_is_small_and_whole() -> None:
    sizes = {path.name: path.stat().st_size for path in PAGE_DIR.iterdir() if path.suffix not in (".py", "")}
    assert set(sizes) == {*NAMES, "index.html", "login.html"}
    assert sum(sizes.values()) < 150_000, sizes


@pytest.mark.parametrize("name", ["index.html", "login.html", *NAMES])
def test_no_file_of_the_page_asks_another_host(name: str) -> None:
    assert not ELSEWHERE.search((PAGE_DIR / name).read_text())


@pytest.mark.parametrize("name", ["index.html", "login.html"])
def test_nothing_in_the_page_is_inline(name: str) -> None:
    found = Tags(template(name))
    assert "style" not in found.tags
    assert not [key for key, _ in found.attributes if key.startswith("on") or key == "style"]
    assert all(value for key, value in found.attributes if key in ("src", "href", "action"))
    named = {str(value) for key, value in found.attributes if key in ("src", "href") and "/" in str(value)}
    assert named <= {f"/page/{one}" for one in NAMES}
    # all of them are fields and parts that have a label
    assert found.tags.count("script") == (name == "index.html")


def test_the_script_makes_no_markup_of_text() -> None:
    script = page_file("page.js").content.decode()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert word not in script


def test_the_policy_lets_nothing_else_in() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert {name: value for name, value in rules.items() if value not in ("'none'", "'self'")} == {
        "require-trusted-types-for": "'script'"
    }
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"


def test_without_a_script_the_page_has_tables_of_everything_as_text() -> None:
    text = with_tables(template("index.html"), an_evil_instance())
    before, found = Tags(template("index.html")), Tags(text)
    assert {tag for tag in found.tags if found.tags.count(tag) != before.tags.count(tag)} <= {
        "table", "caption", "thead", "tbody", "tr", "th", "td", "p",
    }  # fmt: skip
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    for word in ("Deployments", "Replicas that are gone", "signal 9", "1 of 1"):
        assert word in text


def test_without_a_script_an_empty_instance_says_so() -> None:
    assert "No application is deployed." in with_tables(template("index.html"), an_instance())


def test_the_rows_are_one_for_each_thing() -> None:
    view = an_instance(running=True, revision=3, applications=(an_application("a"), an_application("b")))
    rows = rows_of(view, [an_error()], {})
    assert list(rows) == ["i", "a/a", "d/a/D", "r/a_D#aBcDeF", "a/b", "d/b/D", "r/b_D#aBcDeF", "e/e1"]
    assert rows["i"]["revision"] == 3
    assert (rows["d/a/D"]["running"], rows["d/a/D"]["wanted"]) == (1, 1)
    assert (rows["e/e1"]["count"], rows["e/e1"]["last"]) == (2, 20.0)
    assert "requests_per_s" not in rows["d/a/D"]


def test_figures_are_in_the_rows_as_exact_as_they_are_read() -> None:
    replica = {"memory_bytes": 100_000_001, "cpu_share": 0.123456, "p95_ms": None, "pid": 1}
    told = {"requests_per_s": 12.3456, "memory_bytes": 100_000_001, "replicas": {"a_D#aBcDeF": replica}, "name": "D"}
    figures = {"applications": {"a": {"deployments": {"a_D": told}}}}
    rows = rows_of(an_instance(running=True, applications=(an_application("a"),)), [], figures)
    assert rows["d/a/D"]["requests_per_s"] == 12.3
    assert rows["r/a_D#aBcDeF"]["cpu_share"] == 0.123
    assert rows["r/a_D#aBcDeF"]["p95_ms"] is None
    assert 0 <= 100_000_001 - rows["r/a_D#aBcDeF"]["memory_bytes"] < 65536
    assert "name" not in rows["r/a_D#aBcDeF"]


def test_a_death_stays_as_it_was() -> None:
    rows = rows_of(an_evil_instance(), [], {})
    [dead] = next(row for key, row in rows.items() if key.startswith("d/"))["dead"]
    assert (dead["at"], dead["how"], dead["open"]) == (2.0, "signal 9", 1)


def test_long_texts_are_cut() -> None:
    view = an_instance(running=True, applications=(replace(an_application(), standing_message="x" * 10**6),))
    assert len(json.dumps(rows_of(view, [], {}))) < 2 * LONGEST_TEXT


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"a": {"x": 1}}, ({"a": {"x": 1}}, [])),
        ({"a": {"x": 1}}, {"a": {"x": 1}}, ({}, [])),
        ({"a": {"x": 1}}, {"a": {"x": 2}}, ({"a": {"x": 2}}, [])),
        ({"a": {"x": 1}, "b": {}}, {"b": {}}, ({}, ["a"])),
    ],
)
def test_of_two_moments_what_differs_is_told(before: Rows, after: Rows, expected: tuple[Rows, list[str]]) -> None:
    assert difference(before, after) == expected


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    text = event("some", {"a": "1\n2\r3\n\nevent: all\u2028"}).decode()
    assert re.fullmatch(r"event: some\ndata: [^\n\r\u2028]+\n\n", text)
    assert json.loads(text.partition("data: ")[2])["a"].startswith("1\n2\r3")


class Clock(SystemClock):
    """Stands still."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


class Instance:
    """Gives rows; `turn` lets those who wait look again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live, "LEAST_REST_S", 0.0)
        self.rows: Rows = {"i": {"revision": 1}}
        self.clock = Clock()
        self.looks = 0
        self._turned = asyncio.Event()
        self.pages = OpenPages(self.now, self.changed, self.clock)

    def now(self) -> Rows:
        self.looks += 1
        return dict(self.rows)

    async def changed(self, seen: int, timeout_s: float) -> int:
        await self._turned.wait()
        self._turned.clear()
        return seen + 1

    async def turn(self) -> None:
        """Look once more."""
        before = self.looks
        self._turned.set()
        while self.looks == before:  # noqa: ASYNC110 - every other task has its turn, and nothing else is waited for
            await asyncio.sleep(0)


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Instance:
    return Instance(monkeypatch)


def never() -> None:
    raise AssertionError("it was dropped")


def told(data: bytes) -> tuple[str, Any]:
    name, _, value = data.decode().partition("\ndata: ")
    return name.removeprefix("event: "), json.loads(value)


async def test_a_page_is_told_everything_and_then_what_changes(instance: Instance) -> None:
    page = instance.pages.open(never)
    assert told(await instance.pages.next(page)) == ("all", {"i": {"revision": 1}})
    instance.rows |= {"a/a": {"status": "RUNNING"}}
    await instance.turn()
    assert told(await instance.pages.next(page)) == ("some", {"set": {"a/a": {"status": "RUNNING"}}, "gone": []})
    del instance.rows["a/a"]
    await instance.turn()
    assert told(await instance.pages.next(page)) == ("some", {"set": {}, "gone": ["a/a"]})
    instance.pages.close(page)


async def test_nobody_looks_while_no_page_is_open(instance: Instance) -> None:
    first, second = instance.pages.open(never), instance.pages.open(never)
    assert instance.looks == 1
    await instance.turn()
    assert instance.looks == 2, "once for both"
    instance.pages.close(first)
    await instance.turn()
    instance.pages.close(second)
    looks = instance.looks
    instance._turned.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert instance.looks == looks


async def test_a_slow_page_is_told_less_often_and_a_stuck_one_is_dropped(instance: Instance) -> None:
    dropped: list[str] = []
    slow = instance.pages.open(lambda: dropped.append("slow"))
    stuck = instance.pages.open(lambda: dropped.append("stuck"))
    await instance.pages.next(slow)
    await instance.pages.next(stuck)
    for number in range(2, 50):
        instance.rows = {"i": {"revision": number}}
        await instance.turn()
    instance.clock.time += STUCK_S - 1
    assert told(await instance.pages.next(slow)) == ("some", {"set": {"i": {"revision": 49}}, "gone": []})
    instance.clock.time += 2
    await instance.turn()
    assert dropped == ["stuck"]
    assert await instance.pages.next(stuck) == b""
    instance.pages.end()


async def test_where_nothing_happens_a_beat_is_sent(instance: Instance) -> None:
    page = instance.pages.open(never)
    await instance.pages.next(page)
    waiting = asyncio.ensure_future(instance.pages.next(page))
    await instance.turn()
    assert not waiting.done()
    instance.clock.time += BEAT_S
    await instance.turn()
    assert told(await waiting) == ("beat", 0)
    instance.pages.end()


async def test_there_is_a_bound_and_an_end(instance: Instance) -> None:
    pages = [instance.pages.open(never) for _ in range(MOST_PAGES)]
    assert instance.pages.are_too_many
    instance.pages.close(pages.pop())
    assert not instance.pages.are_too_many
    waiting = [asyncio.ensure_future(instance.pages.next(page)) for page in pages]
    await asyncio.sleep(0)
    instance.pages.end()
    ends: Callable[[bytes], bool] = lambda data: data == b"" or data.startswith(b"event: all")  # noqa: E731
    assert all(ends(data) for data in await asyncio.gather(*waiting))
    assert [await instance.pages.next(page) for page in pages] == [b""] * len(pages)
    assert instance.pages.are_too_many
