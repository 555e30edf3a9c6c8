"""The journal of requests: its lines, its counts, and notes that arrive while it settles."""

import asyncio
import json
import logging
import os
import random
import threading
import time
from pathlib import Path

import pytest

from servd.observability.access_log import AccessLog
from servd.observability.head_traces import HeadTraces
from servd.observability.journal import LATENCY_BOUNDS_MS, MAX_PATTERNED_SERIES, MAX_SERIES, NOWHERE, Journal
from servd.observability.log_file import LogFile
from servd.observability.logs import style_of
from servd.wire.trace_context import TraceContext
from tests.recorded_spans import Recorder

FRUIT = ("/fruit", "shop", "shop_Fruit", "")


class StandingClock:
    """Time passes only when told to."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at

    def wall_time(self) -> float:
        return self.at + 1_000_000.0


def access_log(path: Path) -> AccessLog:
    return AccessLog(LogFile(path), "http_proxy", "127.0.0.1", ("http1.py", 7))


async def test_lines_are_written_together(tmp_path: Path) -> None:
    path, clock = tmp_path / "x.log", StandingClock()
    journal = Journal(asyncio.get_running_loop(), access_log(path), clock=clock)
    clock.at += 0.00125
    journal.note((FRUIT, "GET", 200), 100.0, b"abc")
    clock.at += 0.5
    journal.note((FRUIT, "POST", 503), 100.0, b"")
    journal.note((NOWHERE, "GET", 404), clock.at, b"x")
    assert path.read_text() == ""
    journal.settle()
    first, second, third = path.read_text().splitlines()
    assert first.startswith("INFO 1970-01-12 ")
    assert first.endswith(",001 http_proxy 127.0.0.1 abc /fruit shop http1.py:7 - GET 200 1.2ms")
    assert second.endswith(",501 http_proxy 127.0.0.1 /fruit shop http1.py:7 - POST 503 501.2ms")
    assert third.endswith(" http_proxy 127.0.0.1 x http1.py:7 - GET 404 0.0ms")


@pytest.mark.parametrize("is_json", [False, True])
async def test_a_line_of_a_trace_names_it_and_ends_its_span(tmp_path: Path, is_json: bool) -> None:
    path, clock = tmp_path / "x.log", StandingClock()
    journal = Journal(asyncio.get_running_loop(), access_log(path), clock=clock)
    journal.configure(style_of({"encoding": "JSON" if is_json else "TEXT"}))
    trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)
    recorder = Recorder()
    begun = HeadTraces(recorder).taken_in(b"abc", trace, "GET /fruit", {"x": 1}, began=100.0, begins=False)
    assert begun is not None
    clock.at += 0.25
    journal.note((FRUIT, "GET", 503), 100.0, begun, b"/fruit/1", 17, "10.0.0.7", "shop_Fruit#a")
    journal.note((FRUIT, "GET", 200), 100.0, b"other", b"/fruit/1", 17, "10.0.0.7", "shop_Fruit#a")
    journal.settle()
    first, second = path.read_text().splitlines()
    (span,) = recorder.spans
    assert (begun.trace, begun.response) == (span.context, b"00-0af7651916cd43dd8448eb211c80319c-00000000000000a1-01")
    if is_json:
        found = json.loads(first)
        assert (found["request_id"], found["trace_id"], found["span_id"]) == ("abc", trace.trace_id, "00000000000000a1")
        assert (found["path"], "trace_id" in json.loads(second)) == ("/fruit/1", False)
    else:
        assert (
            f" abc trace_id={trace.trace_id} span_id=00000000000000a1 /fruit shop http1.py:7 - GET /fruit/1 503"
            in first
        )
        assert " other /fruit shop http1.py:7 - GET /fruit/1 200" in second
    assert span.told == {
        "x": 1,
        "servd.request_id": "abc",
        "servd.application": "shop",
        "servd.deployment": "Fruit",
        "servd.replica": "shop_Fruit#a",
        "client.address": "10.0.0.7",
        "http.response.status_code": 503,
        "url.path": "/fruit/1",
        "failed": "503",
        "ended": 100.25,
    }


async def test_lines_are_written_without_being_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    journal = Journal(asyncio.get_running_loop(), access_log(path))
    journal.note((FRUIT, "GET", 200), journal.now(), b"abc")
    for _ in range(1000):
        journal.note((FRUIT, "GET", 200), journal.now(), b"abc")
    async with asyncio.timeout(5):
        while len(path.read_text().splitlines()) < 1001:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)


async def test_json_lines_and_none(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    journal = Journal(asyncio.get_running_loop(), access_log(path))
    key = (('/"x"', "", "", ""), 'a"b', "ERROR")
    journal.note((FRUIT, "GET", 200), journal.now(), b"abc")
    journal.configure(style_of({"encoding": "JSON"}))
    journal.note((FRUIT, "GET", 200), journal.now() - 400.0, b"abc")
    journal.note(key, journal.now(), b"")
    journal.configure(style_of({"encoding": "JSON", "log_level": "WARNING"}))
    journal.note(key, journal.now(), b"")
    text, plain, odd = path.read_text().splitlines()
    assert text.endswith("GET 200 0.0ms")
    fields = json.loads(plain)
    assert fields.pop("message").startswith("GET 200 40000")
    assert fields.pop("asctime")[10] == " "
    assert 0 <= time.time_ns() - fields.pop("timestamp_ns") < 60_000_000_000
    assert 400_000 <= fields.pop("latency_ms") < 401_000
    assert fields == {
        "levelname": "INFO",
        "process": os.getpid(),
        "component_name": "http_proxy",
        "component_id": "127.0.0.1",
        "request_id": "abc",
        "route": "/fruit",
        "application": "shop",
        "filename": "http1.py",
        "lineno": 7,
    }
    assert (json.loads(odd)["route"], json.loads(odd)["message"]) == ('/"x"', 'a"b ERROR 0.0ms')
    assert journal.series()[key].count == 2


@pytest.mark.parametrize("name", ["servd", "ray.serve"])
async def test_a_level_of_the_application_silences_access_lines_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.log"
    journal = Journal(asyncio.get_running_loop(), access_log(path))
    logger = logging.getLogger(name)
    before = logger.level
    try:
        for level in (logging.INFO, logging.ERROR, logging.DEBUG):
            logger.setLevel(level)
            journal.note((FRUIT, "GET", 200), journal.now(), str(level).encode())
            journal.settle()
    finally:
        logger.setLevel(before)
    lines = path.read_text().splitlines()
    assert [line.split()[5] for line in lines] == ["20", "10"]
    assert journal.series()[(FRUIT, "GET", 200)].count == 3


@pytest.mark.parametrize(
    ("path", "client", "replica_id", "expected"),
    [
        (b"/a/b", "10.0.0.7", "shop_Fruit#x", "GET /a/b 200 1.2ms 5B 10.0.0.7 shop_Fruit#x"),
        (b"/a", "", "", "GET /a 200 1.2ms 5B - -"),
        (b'/"\x1b\xff\r', "::1", "", 'GET /"\\x1b\\xff\\r 200 1.2ms 5B ::1 -'),
        (b"/" + b"x" * 100_000, "", "", f"GET /{'x' * 2047} 200 1.2ms 5B - -"),
    ],
    ids=["usual", "unknown", "odd", "long"],
)
async def test_lines_of_http_say_who_asked_whom(
    tmp_path: Path, path: bytes, client: str, replica_id: str, expected: str
) -> None:
    file, clock = tmp_path / "x.log", StandingClock()
    journal = Journal(asyncio.get_running_loop(), access_log(file), clock=clock)
    clock.at += 0.00125
    for style in ({}, {"encoding": "JSON"}):
        journal.configure(style_of(style))
        for _ in range(2):
            journal.note((FRUIT, "GET", 200), 100.0, b"abc", path, 5, client, replica_id)
        journal.settle()
    *text, first, second = file.read_text().splitlines()
    assert all(line.endswith(f" abc /fruit shop http1.py:7 - {expected}") for line in text)
    fields = json.loads(first)
    shown = {name: fields.get(name, "") for name in ("method", "status", "latency_ms", "bytes", "client", "replica")}
    assert tuple(shown.values()) == ("GET", 200, 1.2, 5, client, replica_id)
    assert first == second
    assert fields["message"] == "GET 200 1.2ms"
    assert fields["path"].startswith("/")


@pytest.mark.parametrize("is_json", [False, True])
def test_what_clients_choose_is_kept_while_it_is_short_only(tmp_path: Path, is_json: bool) -> None:
    access = access_log(tmp_path / "x.log")
    access.set_style(is_json=is_json)
    for number in range(10):
        assert access.path(b"/%d" % number + b"x" * 60_000).startswith(b"/%d" % number)
        assert len(access.end_of(f"{number}" * 60_000, "shop_Fruit#x")) < 200
    assert (access.paths, access.parties) == ({}, {})
    usual = b"/" + b"x" * 255
    assert access.path(usual) == usual
    access.end_of("1" * 64, "shop_Fruit#x")
    assert (len(access.paths), len(access.parties)) == (1, 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("is_json", [False, True])
async def test_many_notes_at_once_say_what_each_says_alone(tmp_path: Path, seed: int, is_json: bool) -> None:
    rng, clock = random.Random(seed), StandingClock()
    clock.at = 1000.0
    files = [tmp_path / name for name in ("together", "alone")]
    both = [Journal(asyncio.get_running_loop(), access_log(file), clock=clock) for file in files]
    for journal in both:
        journal.configure(style_of({"encoding": "JSON" if is_json else "TEXT"}))
    # of each part all are the same, some are, or each is another
    kinds = [rng.choice((1, 2, 50)) for _ in range(8)]
    for _ in range(200):
        clock.at += rng.choice((0.0, 0.0, 0.00002, 0.0017, 1.2))
        one, *more = (rng.randrange(kind) for kind in kinds)
        labels = FRUIT if not one else (f"/{one}", "shop", f"shop_{one}", "")
        key = (labels, f"M{more[0]}", 200 + more[1])
        took = rng.choice((0.0001, 0.003, 0.199, 0.2, 30.0)) if more[2] else 0.001
        path = b"/%d" % more[3] if more[3] % 3 < 2 else b""
        about = (path, more[4], f"10.0.0.{more[5]}", f"shop#{more[6]}") if path else ()
        request_id = f"r{rng.randrange(3)}".encode() if rng.randrange(5) else b""
        for journal in both:
            journal.note(key, clock.at - took, request_id, *about)
        both[1].settle()
    both[0].settle()
    together, alone = (file.read_text() for file in files)
    assert together == alone
    assert together.count("\n") == 200
    assert {key: one.buckets() for key, one in both[0].series().items()} == {
        key: one.buckets() for key, one in both[1].series().items()
    }
    for one, other in zip(*(journal.series().values() for journal in both), strict=True):
        assert (one.tenths, one.slow, one.total_ms()) == (other.tenths, other.slow, other.total_ms())


@pytest.mark.parametrize(
    ("latency_ms", "bound"), [(0.05, 1), (0.95, 1), (1.04, 2), (19.7, 20), (250.0, 300), (7e5, None)]
)
async def test_buckets(latency_ms: float, bound: int | None) -> None:
    clock = StandingClock()
    journal = Journal(asyncio.get_running_loop(), clock=clock)
    journal.note((FRUIT, "GET", 200), clock.at - latency_ms / 1000, b"abc")
    (series,) = journal.series().values()
    place = series.buckets().index(1)
    assert (LATENCY_BOUNDS_MS[place] if bound else place) == (bound or len(LATENCY_BOUNDS_MS))
    assert series.total_ms() == pytest.approx(latency_ms, abs=0.1)


async def test_the_number_of_series_is_bounded() -> None:
    journal = Journal(asyncio.get_running_loop())
    for number in range(MAX_SERIES + 100):
        journal.note((FRUIT, f"ODD{number}", 200), journal.now(), b"abc")
    series = journal.series()
    assert len(series) == MAX_SERIES + 1
    assert series[NOWHERE, "-", 200].count == 100


async def test_patterns_beyond_their_number_count_under_the_prefix() -> None:
    journal = Journal(asyncio.get_running_loop())
    for number in range(MAX_PATTERNED_SERIES + 100):
        journal.note(((*FRUIT[:3], f"/fruit/{number}"), "GET", 200), journal.now(), b"abc")
    for number in range(MAX_SERIES - 1):
        journal.note((FRUIT, f"ODD{number}", 200), journal.now(), b"abc")
    series = journal.series()
    assert series[FRUIT, "GET", 200].count == 100
    # the others have lost no room to them
    assert len(series) == MAX_PATTERNED_SERIES + MAX_SERIES


async def test_json_lines_have_the_pattern_and_lines_of_text_the_prefix(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    journal = Journal(asyncio.get_running_loop(), access_log(path))
    of_one = ((*FRUIT[:3], "/fruit/{name}"), "GET", 200)
    journal.note(of_one, journal.now(), b"abc", b"/fruit/apple")
    journal.configure(style_of({"encoding": "JSON"}))
    journal.note(of_one, journal.now(), b"abc", b"/fruit/apple")
    journal.settle()
    text, line = path.read_text().splitlines()
    assert " abc /fruit shop http1.py:7 - GET /fruit/apple 200" in text
    assert (json.loads(line)["route"], json.loads(line)["path"]) == ("/fruit/{name}", "/fruit/apple")


async def test_nothing_is_lost_when_another_thread_settles() -> None:
    journal = Journal(asyncio.get_running_loop())
    ended = threading.Event()

    def settle() -> None:
        while not ended.is_set():
            journal.settle()

    thread = threading.Thread(target=settle)
    thread.start()
    for _ in range(30_000):
        journal.note((FRUIT, "GET", 200), journal.now(), b"abc")
    ended.set()
    thread.join()
    assert journal.series()[FRUIT, "GET", 200].count == 30_000
