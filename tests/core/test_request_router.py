import random
from dataclasses import dataclass

import pytest

from servd.calls.request_router import FIRST_OF_LINE, AfterLoss, RequestRouter, RetryBudget, after_loss
from servd.exceptions import BackPressureError, DeploymentUnavailableError, NoRouteError
from servd.wire.messages import DeploymentTargets, Endpoint


@dataclass
class Work:
    number: int
    model_id: str = ""
    has_waited: bool = False


def a_router(
    *replicas: str, models: dict[str, tuple[str, ...]] | None = None, **options: object
) -> RequestRouter[Work]:
    router: RequestRouter[Work] = RequestRouter("app_D", random.Random(7))
    endpoints = tuple(Endpoint(name, f"ipc://{name}", (models or {}).get(name, ())) for name in replicas)
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints, **options))  # type: ignore[arg-type]
    return router


def test_the_less_loaded_of_two_is_chosen() -> None:
    router = a_router("a", "b")
    router.candidates[0].load = 5
    assert {str(router.choose()) for _ in range(20)} == {"Candidate(b, load=0)"}


def test_full_replicas_are_skipped_and_all_full_means_waiting() -> None:
    router = a_router("a", "b", "c")
    router.candidates[0].is_full = router.candidates[1].is_full = True
    assert all(router.choose() is router.candidates[2] for _ in range(20))
    router.candidates[2].is_full = True
    assert router.choose() is None


def test_nobody_overtakes_the_line() -> None:
    router = a_router("a")
    router.admit_to_line(Work(1))
    assert router.choose() is None


def test_line_is_sorted_by_age() -> None:
    router = a_router("a")
    for number in (5, 2, 9, 1):
        assert router.admit_to_line(Work(number)) is None
    assert [work.number for work in router.line] == [1, 2, 5, 9]
    first = router.take_waiting()
    assert first is not None
    assert first.number == 1


def test_line_is_bounded() -> None:
    router = a_router("a", max_queued_requests=2)
    assert router.admit_to_line(Work(1)) is None
    assert router.admit_to_line(Work(2)) is None
    assert isinstance(router.admit_to_line(Work(3)), BackPressureError)


def test_unbounded_line() -> None:
    router = a_router("a", max_queued_requests=-1)
    assert all(router.admit_to_line(Work(number)) is None for number in range(100))


@pytest.mark.parametrize(
    ("bound", "limits", "pending", "kept"),
    [
        (2, {"a": 1}, {}, 3),
        (2, {"a": 1}, {"a": 1}, 2),
        # those that it cannot take come back, and are older
        (2, {"a": 1}, {"a": 8}, 0),
        (2, {"a": 1, "b": 3}, {"a": 1}, 5),
        (2, {}, {}, 2),
        (2, {"a": 1, "b": 0}, {}, 9),
        (-1, {"a": 1}, {}, 9),
        (100, {"a": 1}, {}, 9),
    ],
)
def test_what_came_before_the_bound_was_known_keeps_to_it(
    bound: int, limits: dict[str, int], pending: dict[str, int], kept: int
) -> None:
    router: RequestRouter[Work] = RequestRouter("app_D", random.Random(7))
    assert all(router.admit_to_line(Work(number)) is None for number in range(9))
    assert router.take_beyond({}) == []
    endpoints = tuple(Endpoint(name, f"ipc://{name}") for name in limits)
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints, max_queued_requests=bound))
    for candidate in router.candidates:
        candidate.limit = limits[candidate.replica_id]
    refused = router.take_beyond(pending)
    assert [work.number for work in router.line] == list(range(kept))
    assert [work.number for work, _ in refused] == list(range(kept, 9))
    assert all(isinstance(error, BackPressureError) for _, error in refused)


def test_a_line_that_kept_to_its_bound_is_left_alone_when_that_sinks() -> None:
    router = a_router(max_queued_requests=5)
    assert all(router.admit_to_line(Work(number)) is None for number in range(5))
    router.update(DeploymentTargets("app_D", "app", max_queued_requests=1))
    assert router.take_beyond({}) == []
    assert len(router.line) == 5


def test_refusals() -> None:
    assert isinstance(a_router(exists=False).refusal(), NoRouteError)
    assert isinstance(a_router(unavailable="broken").refusal(), DeploymentUnavailableError)
    assert a_router("a", unavailable="broken").refusal() is None
    assert a_router().refusal() is None


def test_replicas_that_hold_the_model_come_first() -> None:
    router = a_router("a", "b", "c", models={"c": ("m",)})
    assert router.choose("m") is router.candidates[2]
    chosen = router.choose("other")
    assert chosen is not None
    assert all(router.choose("other") is chosen for _ in range(10)), "remembered"


def test_what_waits_for_the_first_replicas_goes_where_its_model_is() -> None:
    router = a_router()
    wanted = [*("m" for _ in range(FIRST_OF_LINE + 2)), "", "other", "n"]
    for number, model_id in enumerate(wanted):
        assert router.admit_to_line(Work(number, model_id)) is None
    endpoints = tuple(
        Endpoint(name, f"ipc://{name}", models) for name, models in (("a", ()), ("b", ("m", "n")), ("c", ("n",)))
    )
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints))
    sent = [(work.number, work.has_waited, chosen.replica_id) for work, chosen in router.take_first()]
    n = len(wanted) - 1
    assert sent == [*((number, True, "b") for number in range(FIRST_OF_LINE)), (n, True, "c")]
    assert [work.number for work in router.line] == [FIRST_OF_LINE, FIRST_OF_LINE + 1, n - 2, n - 1]


def test_dropped_replica_returns_with_the_next_announcement() -> None:
    router = a_router("a", "b")
    router.drop(router.candidates[0])
    assert [c.replica_id for c in router.candidates] == ["b"]
    new, gone = router.update(router.targets)
    assert [c.replica_id for c in new] == ["a"]
    assert [c.replica_id for c in gone] == ["a"], "the old connection is retired"


@pytest.mark.parametrize(
    ("accepted", "idempotent", "begun", "granted", "retries", "expected"),
    [
        (False, False, False, False, 0, AfterLoss.ELSEWHERE),
        (False, False, False, False, 9, AfterLoss.ELSEWHERE),
        (True, True, False, False, 0, AfterLoss.RETRY),
        (True, True, False, False, 2, AfterLoss.RETRY),
        (True, True, False, False, 3, AfterLoss.FAIL),
        (True, False, False, False, 0, AfterLoss.FAIL),
        (True, True, True, False, 0, AfterLoss.FAIL),
        (True, True, False, True, 0, AfterLoss.FAIL),
    ],
)
def test_retry_table(
    accepted: bool, idempotent: bool, begun: bool, granted: bool, retries: int, expected: AfterLoss
) -> None:
    verdict = after_loss(
        is_accepted=accepted,
        is_idempotent=idempotent,
        has_begun=begun,
        was_granted=granted,
        retries=retries,
        max_retries=3,
    )
    assert verdict is expected


def test_budget_is_a_hundred_plus_a_share_of_the_last_ten_seconds() -> None:
    budget = RetryBudget()
    assert sum(budget.take(0, 0.0) for _ in range(200)) == 100
    assert sum(budget.take(1000, 0.0) for _ in range(500)) == 200
    budget.note(1000, 1.0)
    assert sum(budget.take(1000, 11.5) for _ in range(200)) == 100, "old requests and old retries do not count"
