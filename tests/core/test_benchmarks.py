"""The pure half of the benchmarks: what wrk printed, ratios, the table, files."""

import importlib.metadata
import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks.compare.cases import AIMS, BY_NAME, json_text
from benchmarks.compare.figures import Sample, aims, ratio_by_round, reached, rows
from benchmarks.compare.peers import REQUIREMENTS, version_of
from benchmarks.compare.processes import cpu_ticks
from benchmarks.compare.results import Results, machine, read, together, write
from benchmarks.compare.systems import SYSTEMS, Endpoint
from benchmarks.compare.table import number, report, table
from benchmarks.compare.wrk import LoadError, parsed, script
from benchmarks.models.cases import CASES, verdicts
from benchmarks.models.systems import SYSTEMS as MODEL_SYSTEMS
from benchmarks.models.table import report as models_report
from benchmarks.observability.spread import Share, share
from servd.ground.package import DISTRIBUTION

PRINTED = """Running 1s test @ http://127.0.0.1:8000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.62ms  514.20us  10.77ms   92.40%
    Req/Sec    20.05k     1.35k   21.70k    72.73%
  Latency Distribution
     50%  812.00us
     75%    1.70ms
     90%    1.98ms
     99%    1.05s
  21937 requests in 1.10s, 2.66MB read
Requests/sec:  19946.61
Transfer/sec:      2.42MB
"""


def a_sample(system: str, number: int, value: float | None, **more: float) -> Sample:
    return Sample("noop", 32, system, number, value, **more)


def test_what_wrk_printed() -> None:
    load = parsed(PRINTED)
    assert (load.requests, load.seconds, load.p50_ms, load.p99_ms) == (21937, 1.1, 0.812, 1050.0)


@pytest.mark.parametrize(
    "text",
    [
        PRINTED + "  Non-2xx or 3xx responses: 3\n",
        PRINTED + "  Socket errors: connect 0, read 0, write 0, timeout 5\n",
        PRINTED.replace("21937 requests", "0 requests"),
        "unable to connect",
    ],
    ids=["not all well", "sockets failed", "nothing answered", "no figures"],
)
def test_a_bad_load_is_no_figure(text: str) -> None:
    with pytest.raises(LoadError):
        parsed(text)


def test_script_posts_the_body(tmp_path: Path) -> None:
    text = script("POST", b"\x00body", {"Content-Type": "a/b"}, tmp_path / "body")
    assert 'wrk.method = "POST"' in text
    assert 'wrk.headers["Content-Type"] = "a/b"' in text
    assert (tmp_path / "body").read_bytes() == b"\x00body"


def test_ratios_are_taken_within_a_round() -> None:
    mine = [a_sample("servd", 0, 10), a_sample("servd", 1, 100), a_sample("servd", 2, None)]
    others = [a_sample("limit", 0, 5), a_sample("limit", 1, 100), a_sample("limit", 2, 1)]
    assert ratio_by_round(mine, others, lambda sample: sample.value) == 1.5
    assert ratio_by_round(mine, [], lambda sample: sample.value) is None


def test_a_row_sums_up_the_rounds() -> None:
    samples = [a_sample("servd", 0, 30), a_sample("servd", 1, 10), a_sample("servd", 2, 20), a_sample("ray", 0, 2)]
    mine, other = rows(samples)
    assert (mine.value, mine.lowest, mine.highest, mine.ratio) == (20, 10, 30, 1.0)
    assert (other.system, other.ratio, other.failed) == ("ray", 15.0, 0)


def test_failed_rounds_are_told() -> None:
    failed = Sample("noop", 32, "mosec", 0, None, error="status 503")
    assert rows([failed])[0].value is None
    assert "(1 of 1 rounds failed: status 503)" in table([failed])


def test_aims_of_both_kinds() -> None:
    samples = [
        a_sample("servd", 0, 90, cpu_us=20, p50_ms=1, p99_ms=2),
        a_sample("limit", 0, 100, cpu_us=10, p50_ms=1, p99_ms=2),
    ]
    found = {(aim.system, aim.measure): (ratio, is_reached) for aim, ratio, is_reached in aims(samples)}
    assert found == {("limit", "value"): (0.9, True), ("limit", "cpu_us"): (2.0, False)}
    tail = next(aim for aim in AIMS if aim.measure == "tail")
    assert reached(tail, [Sample("noop", 128, "servd", 0, 1, 2.0, 5.0)]) == 2.5


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (1234.5, "1,234"), (99.96, "100.0"), (12.34, "12.3"), (1.234, "1.23")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = Results(
        machine() | {"rounds": 1},
        {"servd": "as it comes"},
        {"ray": "no wheel"},
        [a_sample("servd", 0, 12345.678, p50_ms=1.5), a_sample("limit", 0, None)],
    )
    path = tmp_path / "new" / "bench.json"
    write(results, path)
    again = read(path)
    assert json.loads(path.read_text())["samples"][0][4] == 12346.0
    assert report(again).splitlines()[1:] == report(results).splitlines()[1:]
    assert "SKIPPED: no wheel" in report(again)


def test_runs_follow_each_other_in_one_table() -> None:
    one = Results({"rounds": 1}, {"servd": "a"}, {}, [a_sample("servd", 0, 1)])
    other = Results({"rounds": 2}, {"limit": "b"}, {"ray": "c"}, [a_sample("servd", 0, 3), a_sample("limit", 0, 2)])
    whole = together([one, other])
    assert (whole.about, list(whole.systems), list(whole.skipped)) == ({"rounds": 2}, ["servd", "limit"], ["ray"])
    assert [sample.round for sample in whole.samples] == [0, 1, 1]
    assert [(row.value, row.ratio) for row in rows(whole.samples)] == [(2, 1.0), (2, 1.5)]


def test_pieces_of_a_run_lie_beside_each_other() -> None:
    pieces = [
        Results({}, {}, {}, [a_sample(name, 0, value)]) for name, value in (("servd", 6), ("limit", 2), ("servd", 8))
    ]
    whole = together(pieces)
    assert [(sample.system, sample.round) for sample in whole.samples] == [("servd", 0), ("limit", 0), ("servd", 1)]
    assert [row.ratio for row in rows(whole.samples)] == [1.0, 3.0]


def test_every_case_of_a_system_is_known() -> None:
    assert set().union(*(system.cases for system in SYSTEMS)) <= set(BY_NAME)
    assert {aim.system for aim in AIMS} <= {system.name for system in SYSTEMS}
    assert 900 < len(json_text()) < 1100


def test_cpu_time_counts_ended_children() -> None:
    stat = "12 (a ) name) S 1 2 3 0 -1 4194560 5 6 7 8 " + "100 20 3 4 20 0 1 0 55 66"
    assert cpu_ticks(stat) == 127


def test_an_endpoint_is_on_this_machine() -> None:
    assert Endpoint(8000, "/x").url == "http://127.0.0.1:8000/x"


def of_models(case: str, **values: float | None) -> list[Sample]:
    return [Sample(case, 0, name.replace("_", "-"), 0, value) for name, value in values.items()]


MODELS = [
    *of_models("torch-memory1", servd_preload=500, ray=900),
    *of_models("torch-memory8", servd_preload=600, ray=5000),
    *of_models("torch-grow", servd_preload=0.5, servd_spawn=15, ray=8),
    *of_models("torch-rate", servd_preload=96, servd_spawn=90, ray=50, mosec=100, litserve=None),
    *of_models("torch-imports", servd=1),
]


def test_verdicts_on_models() -> None:
    found = {(verdict.text, round(verdict.value, 2), verdict.is_reached) for verdict in verdicts(MODELS)}
    rate = "(2 replicas x 1 thread, requests/s)"
    assert found == {
        ("PyTorch, 434 MB: memory of 8 by that of one, at most 1.3", 1.2, True),
        ("PyTorch, 434 MB: seconds from 1 to 8, at most 1", 0.5, True),
        ("PyTorch, 434 MB: servd-spawn's seconds from 1 to 8 by servd's, at least 20", 30, True),
        ("PyTorch, 434 MB: ray's seconds from 1 to 8 by servd's, at least 20", 16, False),
        (f"PyTorch, 434 MB: requests/s by the best peer's {rate}, at least 0.95", 0.96, True),
        (f"PyTorch, 434 MB: requests/s by those of spawned replicas {rate}, at least 0.95", 1.07, True),
        ("PyTorch, 434 MB: imports of the library, nothing preloaded, at most 1", 1, True),
    }


def test_report_on_models() -> None:
    failed = Sample("sklearn-burst", 0, "ray", 0, None, error="nothing answers\nsee the log")
    text = models_report(Results({"rounds": 1}, {}, {"mosec": "no wheel"}, [*MODELS, failed]))
    assert "mosec          SKIPPED: no wheel" in text
    assert "(1 of 1 rounds failed: nothing answers)" in text
    assert "MISSED      16.0  PyTorch, 434 MB: ray's seconds" in text
    assert [line.split("  ")[0] for line in text.splitlines() if line.startswith("PyTorch")] == [
        CASES[f"torch-{kind}"] for kind in ("memory1", "memory8", "grow", "imports", "rate")
    ]


def test_every_system_of_models_has_an_environment() -> None:
    assert {system.peer for system in MODEL_SYSTEMS} <= {*REQUIREMENTS, "servd"}


@pytest.mark.parametrize(("package", "distribution"), [("servd", DISTRIBUTION), ("pytest", "pytest")])
def test_versions_are_those_of_what_is_installed(package: str, distribution: str) -> None:
    assert version_of(package, sys.executable) == importlib.metadata.version(distribution)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(4, -math.inf, math.inf), (5, 1, 5), (7, 1, 7), (8, 2, 7), (12, 3, 10)],
)
def test_the_interval_of_a_median_needs_five_pairs(count: int, low: float, high: float) -> None:
    # probabilities: 0.875 of 4 pairs, 0.9375 of 5; without the least and the greatest 0.875 of 7 and 0.93 of 8
    mine = [float(number) for number in range(1, count + 1)]
    assert share(mine[::-1], [1.0] * count) == Share((count + 1) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.95, 1.1, "reached"), (0.9, 0.94, "MISSED"), (0.9, 1.0, "open")]
)
def test_an_aim_is_open_while_the_interval_holds_it(low: float, high: float, verdict: str) -> None:
    assert Share(0.95, low, high).verdict(0.95) == verdict


def test_shares_are_shown_with_their_intervals() -> None:
    assert str(share([9.0] * 5, [10.0] * 5)) == "0.900 (0.900 to 0.900)"
    assert str(share([9.0], [10.0])) == "0.900 (too few pairs for an interval)"
