"""Metrics of application code: checks, tags, what a replica adds."""

from collections.abc import Iterator
from typing import Any

import pytest

from servd.calls.replica_context import ReplicaContext, set_replica_context
from servd.calls.request_context import RequestContext, current_request
from servd.compat import util_metrics
from servd.controller.metric_sums import MetricSums
from servd.ground.ids import DeploymentID, ReplicaID
from servd.metrics import Counter, Gauge, Histogram, families


@pytest.fixture
def replica() -> Iterator[None]:
    set_replica_context(ReplicaContext(ReplicaID(DeploymentID("d", "app"), "abcdef")))
    yield
    set_replica_context(None)


def lines(name: str) -> list[str]:
    sums = MetricSums()
    sums.add(families())
    return [line for line in sums.text().splitlines() if line.startswith(name)]


def test_values_outside_a_replica() -> None:
    counter = Counter("plain_total", "text", tag_keys=("kind",))
    counter.inc(2, tags={"kind": "a"})
    counter.set_default_tags({"kind": "b"})
    counter.inc()
    assert 'plain_total{kind="a"} 2.0' in lines("plain_total")
    assert 'plain_total{kind="b"} 1.0' in lines("plain_total")
    assert counter.info["tag_keys"] == ("kind",)
    gauge = Gauge("level")
    gauge.set(3)
    gauge.set(-1)
    assert lines("level") == ["level -1.0"]
    histogram = Histogram("seconds", boundaries=[1, 5])
    histogram.observe(3)
    assert 'seconds_bucket{le="5.0"} 1.0' in lines("seconds")


@pytest.mark.usefixtures("replica")
def test_a_replica_adds_who_it_is() -> None:
    counter = Counter("inside", tag_keys=("route",))
    token = current_request.set(RequestContext(route="/x"))
    counter.inc()
    current_request.reset(token)
    (line,) = lines("inside")
    for part in ('route="/x"', 'deployment="app_d"', 'replica="app_d#abcdef"', 'application="app"'):
        assert part in line
    with pytest.raises(ValueError, match="deployment"):
        Counter("own", tag_keys=("deployment",))
    with pytest.raises(ValueError, match="replica"):
        counter.set_default_tags({"replica": "x"})


@pytest.mark.usefixtures("replica")
def test_a_counter_has_the_route_that_answers_beside_the_prefix() -> None:
    counter, gauge = (kind("routed_" + kind.__name__, tag_keys=("route",)) for kind in (Counter, Gauge))
    for pattern in ("/x/{id}", "/x/{id}", "/x/{name}", ""):
        token = current_request.set(RequestContext(route="/x", pattern=pattern))
        counter.inc()
        gauge.set(3)
        current_request.reset(token)
    found = {found.name: dict(found.samples) for found in families(deployment="app_d")}
    tags = (("deployment", "app_d"), ("replica", "app_d#abcdef"), ("application", "app"))
    assert {pairs[4:]: value for pairs, value in found["routed_Counter"].items() if pairs[1:4] == tags} == {
        (("__route_pattern", "/x/{id}"),): 2.0,
        (("__route_pattern", "/x/{name}"),): 1.0,
        (): 1.0,
    }
    assert found["routed_Gauge"] == {(("route", "/x"), *tags): 3.0}


@pytest.mark.usefixtures("replica")
@pytest.mark.parametrize("own", ["deployment", "replica", "application"])
def test_tags_of_rays_own_metrics_are_the_codes(own: str) -> None:
    counter = util_metrics.Counter(f"my_{own}", tag_keys=(own,))
    counter.set_default_tags({own: "mine"})
    counter.inc()
    (line,) = lines(f"my_{own}")
    filled_in = {"deployment": "app_d", "replica": "app_d#abcdef", "application": "app"}
    assert all(f'{key}="{value}"' in line for key, value in {**filled_in, own: "mine"}.items())
    assert util_metrics.Gauge(f"other_{own}").info["tag_keys"] == tuple(filled_in)
    assert isinstance(util_metrics.Histogram(f"h_{own}", boundaries=[1]), Histogram)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Counter(""), ValueError),
        (lambda: Counter("x", tag_keys=["a"]), TypeError),
        (lambda: Histogram("x"), ValueError),
        (lambda: Histogram("x", boundaries=[0, 1]), ValueError),
        (lambda: Counter("c1").inc(0), ValueError),
        (lambda: Counter("c2").inc(tags={"a": "b"}), ValueError),
        (lambda: Counter("c3", tag_keys=("a",)).inc(), ValueError),
        (lambda: Counter("c4", tag_keys=("a",)).inc(tags={"a": 1}), TypeError),
        (lambda: Gauge("g1").set_default_tags({"a": "b"}), ValueError),
    ],
)
def test_what_does_not_fit(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()
