"""Metrics added up: what is merged, what the dead leave, and the text."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from servd.controller.metric_sums import MetricSums, remains
from servd.observability.journal import NOWHERE, Series
from servd.observability.measures import CONTRACT, handle_families, http_families, labelled, replica_families
from servd.wire.messages import MetricFamily

TAGS = {"deployment": "a_D", "replica": "a_D#x", "application": "a"}


def counted(*latencies_ms: float) -> Series:
    series = Series()
    for latency_ms in latencies_ms:
        series.tenths[int(latency_ms * 10) - 1] += 1
    return series


def values(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Samples of that very name, by sorted labels, as Prometheus' own parser reads them."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for found in text_string_to_metric_families(text)
        for sample in found.samples
        if sample.name in (name, f"{name}_total")
    }


def total(sums: MetricSums, name: str) -> float:
    return sum(values(sums.text(), name).values())


def test_requests_of_two_proxies_are_one_sum() -> None:
    route = ("/x", "a", "a_D", "")
    found = {
        (route, "GET", 200): counted(0.5, 3.0),
        (route, "GET", 503): counted(7.0),
        (NOWHERE, "GET", 404): counted(1.0),
    }
    sums = MetricSums()
    sums.add(http_families(found))
    sums.add(http_families({(route, "GET", 200): counted(0.5)}))
    text = sums.text()
    assert values(text, "serve_num_http_requests") == {
        (("application", "a"), ("method", "GET"), ("route", "/x"), ("status_code", "200")): 3,
        (("application", "a"), ("method", "GET"), ("route", "/x"), ("status_code", "503")): 1,
        (("method", "GET"), ("status_code", "404")): 1,
    }
    assert values(text, "serve_num_http_error_requests") == {
        (("application", "a"), ("error_code", "503"), ("method", "GET"), ("route", "/x")): 1,
        (("error_code", "404"), ("method", "GET")): 1,
    }
    assert total(sums, "serve_num_deployment_http_error_requests") == 1
    assert total(sums, "serve_num_router_requests") == 4
    assert 'serve_http_request_latency_ms_bucket{route="/x",application="a",status_code="200",le="1.0"} 2.0' in text
    assert 'serve_http_request_latency_ms_bucket{route="/x",application="a",status_code="200",le="+Inf"} 3.0' in text


def test_every_name_of_the_contract_is_there() -> None:
    text = MetricSums().text()
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == set(CONTRACT)


def test_gauges_add_up_and_ages_do_not() -> None:
    sums = MetricSums()
    for value in (2.0, 3.0):
        sums.add([MetricFamily(name, "gauge", "", ((labelled(deployment="d"), value),)) for name in QUEUE])
    assert [total(sums, name) for name in QUEUE] == [5.0, 3.0]


QUEUE = ("serve_deployment_queued_queries", "serve_deployment_queue_age_seconds")


def test_the_dead_leave_counters_and_no_gauges() -> None:
    found = {
        (("/x", "a", "", ""), "__call__", "OK"): counted(1.0),
        (("/x", "a", "", ""), "__call__", "ERROR"): counted(1.0),
    }
    families = [
        *replica_families(found, **TAGS),
        *http_families({(("/x", "a", "a_D", ""), "GET", 200): counted(1.0)}),
        MetricFamily("serve_replica_processing_queries", "gauge", "", ((labelled(**TAGS), 4),)),
    ]
    shared, own = remains(families)
    assert "serve_num_http_requests" in {found.name for found in shared}
    assert {found.name for found in own} == {
        "serve_deployment_request_counter",
        "serve_deployment_error_counter",
        "serve_deployment_processing_latency_ms",
    }
    sums = MetricSums()
    sums.add(shared)
    sums.add(own)
    for name in ("serve_deployment_request_counter", "serve_deployment_error_counter", "serve_num_http_requests"):
        assert total(sums, name) == 1
    assert not values(sums.text(), "serve_replica_processing_queries")


def test_odd_values_and_families_that_do_not_fit() -> None:
    odd: tuple[Any, ...] = (((("k", 'a"b\\c\nd'),), float("nan")), ((), float("-inf")))
    sums = MetricSums()
    sums.add([MetricFamily("mine", "gauge", "two\nlines", odd)])
    sums.add([MetricFamily("mine", "counter", "another kind", (((), 1),))])
    text = sums.text()
    assert "# HELP mine two\\nlines" in text
    assert values(text, "mine")[()] == float("-inf")
    (key,) = [labels for labels in values(text, "mine") if labels]
    assert key == (("k", 'a"b\\c\nd'),)


def test_todays_names_and_labels() -> None:
    sums = MetricSums()
    sums.add(http_families({(("/x", "a", "a_D", ""), "GET", 503): counted(0.5)}))
    sums.add([MetricFamily("own_total", "counter", "", (((), 2),)), MetricFamily("level", "gauge", "", (((), 1),))])
    lines = sums.text(is_todays=True).splitlines()
    tags = 'deployment="D",error_code="503",method="GET",route="/x",application="a"'
    assert f"ray_serve_num_deployment_http_error_requests_total{{{tags}}} 1.0" in lines
    assert "# TYPE ray_serve_num_deployment_http_error_requests_total counter" in lines
    assert 'ray_serve_http_request_latency_ms_count{route="/x",application="a",status_code="503"} 1.0' in lines
    assert {"ray_own_total 2.0", "ray_level 1.0"} <= {*lines}
    assert not [line for line in lines if line.startswith("serve_")]
    assert sums.text().count("\n") == len(lines)


def test_routes_of_an_application_are_told_apart_in_todays_text_alone() -> None:
    route, tags = ("/x", "a", "a_D"), 'method="GET",application="a",status_code="200"'
    found = {
        ((*route, "/x/users/{id}"), "GET", 200): counted(0.5, 0.5),
        ((*route, "/x/"), "GET", 200): counted(7.0),
        ((*route, ""), "GET", 200): counted(1.0),
    }
    sums = MetricSums()
    sums.add(http_families(found))
    sums.add(
        replica_families(
            {(("/x", "a", "", pattern), "m", "OK"): one for ((*_, pattern), *_), one in found.items()}, **TAGS
        )
    )
    sums.add(handle_families({("a_E", "/x", "/x/users/{id}"): 3, ("a_E", "/x", ""): 4}, {"a_E": "a"}))
    seeds, todays = sums.text().splitlines(), sums.text(is_todays=True).splitlines()
    assert [line for line in seeds if line.startswith("serve_num_http_requests{")] == [
        f'serve_num_http_requests{{route="/x",{tags}}} 4.0'
    ]
    assert 'serve_http_request_latency_ms_count{route="/x",application="a",status_code="200"} 4.0' in seeds
    assert 'serve_http_request_latency_ms_bucket{route="/x",application="a",status_code="200",le="1.0"} 3.0' in seeds
    assert 'serve_deployment_request_counter{route="/x",deployment="a_D",replica="a_D#x",application="a"} 4.0' in seeds
    assert 'serve_num_router_requests{deployment="a_E",route="/x",application="a"} 7.0' in seeds
    assert {line for line in todays if line.startswith("ray_serve_num_http_requests_total{")} == {
        f'ray_serve_num_http_requests_total{{route="/x/users/{{id}}",{tags}}} 2.0',
        f'ray_serve_num_http_requests_total{{route="/x/",{tags}}} 1.0',
        f'ray_serve_num_http_requests_total{{route="/x",{tags}}} 1.0',
    }
    assert 'ray_serve_num_router_requests_total{deployment="E",route="/x/users/{id}",application="a"} 3.0' in todays
    assert "__" not in sums.text() + sums.text(is_todays=True)


def test_todays_label_of_a_deployment_without_an_application() -> None:
    sums = MetricSums()
    sums.add([MetricFamily("mine", "gauge", "", (((("deployment", "_private"), ("application", "")), 1),))])
    assert 'ray_mine{deployment="_private",application=""} 1.0' in sums.text(is_todays=True)


def test_todays_label_of_a_replica_is_its_letters() -> None:
    sums = MetricSums()
    sums.add([MetricFamily("level", "gauge", "", ((tuple(TAGS.items()), 1), ((("replica", "m#ine"),), 2)))])
    text = sums.text(is_todays=True)
    assert 'ray_level{deployment="D",replica="x",application="a"} 1.0' in text
    assert 'ray_level{replica="m#ine"} 2.0' in text
    assert 'level{deployment="a_D",replica="a_D#x",application="a"} 1.0' in sums.text()
