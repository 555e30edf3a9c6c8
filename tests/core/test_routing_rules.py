"""Rules by which a caller chooses a replica: what is kept together, what is spread, and that a full one is never chosen."""

import random
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from servd.calls import routing_rules
from servd.calls.affinity import affinity_of_grpc, affinity_of_http, prompt_of_arguments
from servd.calls.request_router import RequestRouter
from servd.calls.routing_rules import Candidate, ConsistentHash, PrefixAffinity, Rule, make_rule
from servd.config import DeploymentConfig, RequestRouterConfig
from servd.documents.request_router import ConsistentHashOptions, PrefixOptions
from servd.documents.router_names import RAY_CLASSES, rule_of
from servd.exceptions import ConfigError
from servd.schema import parse_v2
from servd.wire.messages import DeploymentTargets, Endpoint

place = routing_rules._place
RULES = ("round_robin", "least_loaded", "consistent_hash", "prefix")


def replicas(count: int) -> list[Candidate]:
    return [Candidate(f"app_D#r{number}", f"ipc://{number}") for number in range(count)]


def rule(name: str, candidates: list[Candidate], **options: Any) -> Rule:
    made = make_rule({"name": name, **options}, random.Random(7))
    assert made is not None
    made.update(candidates)
    return made


def chosen(by: Rule, among: list[Candidate], affinity: str = "") -> str | None:
    found = by.choose(among, affinity)
    return None if found is None else found.replica_id


@pytest.mark.parametrize("name", RULES)
def test_a_full_replica_is_never_chosen(name: str) -> None:
    there = replicas(4)
    by = rule(name, there)
    for full in range(4):
        there[full].is_full = True
        found = [by.choose(there, key) for key in ("", "a", "a" * 100, "b")]
        assert all(candidate is None if full == 3 else not candidate.is_full for candidate in found if candidate), full
        assert (None in found) is (full == 3)
    assert by.choose([], "x") is None


def test_each_in_turn() -> None:
    there = replicas(3)
    by = rule("round_robin", there)
    first = [chosen(by, there) for _ in range(6)]
    assert first[:3] == first[3:]
    assert set(first) == {one.replica_id for one in there}
    there[1].is_full = True
    assert Counter(chosen(by, there) for _ in range(10)) == {there[0].replica_id: 5, there[2].replica_id: 5}


def test_the_least_busy_one_of_all() -> None:
    there = replicas(5)
    for candidate, load in zip(there, (4, 1, 3, 1, 9), strict=True):
        candidate.load = load
    by = rule("least_loaded", there)
    assert {chosen(by, there) for _ in range(50)} == {there[1].replica_id, there[3].replica_id}


@pytest.mark.parametrize(
    ("before", "after", "most"),
    [(1, 2, 0.6), (2, 3, 0.45), (4, 5, 0.3), (10, 11, 0.14), (10, 20, 0.6), (5, 4, 0.3), (20, 10, 0.6)],
)
def test_a_scale_step_moves_few_sessions(before: int, after: int, most: float) -> None:
    """Of n and m replicas the share 1 - min/max must move; the ring moves that, give or take its unevenness, and no more."""
    keys = [f"session-{number}" for number in range(2000)]
    there = replicas(max(before, after))
    by = rule("consistent_hash", there[:before])
    first = {key: chosen(by, there[:before], key) for key in keys}
    by.update(there[:after])
    then = {key: chosen(by, there[:after], key) for key in keys}
    moved = [key for key in keys if first[key] != then[key]]
    assert 1 - min(before, after) / max(before, after) <= len(moved) / len(keys) + 0.1
    assert len(moved) / len(keys) <= most
    # whoever stays loses nothing to another that stays
    newcomers = {one.replica_id for one in there[min(before, after) :]}
    assert all((then[key] in newcomers) or (first[key] in newcomers) for key in moved)


def test_every_caller_agrees_and_comes_back() -> None:
    there = replicas(6)
    one, other = rule("consistent_hash", there), rule("consistent_hash", there[::-1])
    keys = [f"s{number}" for number in range(300)]
    assert [chosen(one, there, key) for key in keys] == [chosen(other, there[::-1], key) for key in keys]
    homes = {key: chosen(one, there, key) for key in keys}
    there[2].is_full = True
    away = {key: chosen(one, there, key) for key in keys}
    assert {key for key in keys if homes[key] != away[key]} == {k for k, v in homes.items() if v == there[2].replica_id}
    # the next of the ring is another one for each: no second replica takes the whole load of a full one
    assert len({away[key] for key in keys if homes[key] == there[2].replica_id}) > 2
    there[2].is_full = False
    assert {key: chosen(one, there, key) for key in keys} == homes


def test_only_newcomers_are_placed_on_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []
    monkeypatch.setattr(routing_rules, "_place", lambda text: (placed.append(text), place(text))[1])
    there = replicas(5)
    by = rule("consistent_hash", there[:4], num_virtual_nodes=10)
    placed.clear()
    by.update(there[:4])
    by.update(there[:3])
    assert placed == []
    by.update(there)
    assert {text.split()[0] for text in placed} == {there[3].replica_id, there[4].replica_id}
    placed.clear()
    # another connection to the same replica: its places are known, and requests go to the new one
    again = [Candidate(there[0].replica_id, "ipc://again"), *there[1:]]
    by.update(again)
    assert placed == []
    assert again[0] in {by.choose(again, str(number)) for number in range(50)}
    assert there[0] not in {by.choose(again, str(number)) for number in range(50)}


def test_loads_are_bounded_where_that_is_asked_for() -> None:
    there = replicas(4)
    free, bounded = rule("consistent_hash", there), rule("consistent_hash", there, load_factor=1.5)
    home = next(one for one in there if one.replica_id == chosen(free, there, "hot"))
    for _ in range(40):
        found = bounded.choose(there, "hot")
        assert found is not None
        found.load += 1
    assert sum(one.load for one in there) == 40
    assert max(one.load for one in there) == home.load == 15  # 1.5 times the mean of 40
    assert chosen(free, there, "hot") == home.replica_id


def test_requests_without_a_session_go_to_the_better_of_two() -> None:
    there = replicas(2)
    there[0].load = 5
    assert {chosen(rule("consistent_hash", there), there) for _ in range(20)} == {there[1].replica_id}


def test_texts_that_begin_alike_stay_together() -> None:
    there = replicas(3)
    by = rule("prefix", there)
    systems = [f"You are assistant {letter}. " * 20 for letter in "ABC"]
    homes = [chosen(by, there, system + "first question") for system in systems]
    # each new beginning goes to whoever has seen least
    assert len(set(homes)) == 3
    for number in range(30):
        assert [chosen(by, there, f"{system}question {number}") for system in systems] == homes
    # a replica that is gone is forgotten, the others keep theirs
    left = [one for one in there if one.replica_id != homes[0]]
    by.update(left)
    assert [chosen(by, left, system + "again") for system in systems][1:] == homes[1:]


def test_a_small_match_is_none_and_too_much_load_counts_more() -> None:
    there = replicas(2)
    by = rule("prefix", there, imbalanced_threshold=3)
    first = by.choose(there, "x" * 320)
    assert first is not None
    other = next(one for one in there if one is not first)
    # one block of eleven is less than a tenth
    assert chosen(by, there, "x" * 32 + "y" * 320) == other.replica_id
    first.load = 4
    assert chosen(by, there, "x" * 320) == other.replica_id


def test_what_is_remembered_of_texts_is_bounded() -> None:
    there = replicas(2)
    by = PrefixAffinity(random.Random(1), eviction_threshold_chars=3200, eviction_target_chars=1600)
    by.update(there)
    for number in range(200):
        by.choose(there, f"{number} " * 60)
    assert len(by._seen_by) <= 100
    assert sum(by._sizes.values()) == sum(map(len, by._seen_by.values()))


class Asked:
    """A request with a session."""

    def __init__(self, number: int, session: str) -> None:
        self.number, self.session = number, session

    def affinity(self, rule: Rule) -> str:
        return self.session if rule.header == b"x-session-id" else ""


def test_the_router_asks_the_rule_that_the_controller_names() -> None:
    router: RequestRouter[Asked] = RequestRouter("app_D", random.Random(7))
    endpoints = tuple(Endpoint(f"app_D#r{number}", f"ipc://{number}") for number in range(4))
    config = rule_of({"request_router_class": "consistent_hash"})
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints, router=config))
    by_rule = {str(router.choose(work=Asked(1, "a"))) for _ in range(20)}
    assert len(by_rule) == 1
    known = router.rule
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints[1:], router=config))
    assert router.rule is known
    gone = router.choose(work=Asked(1, "a"))
    assert gone is not None
    router.drop(gone)
    assert router.choose(work=Asked(1, "a")) not in (gone, None)
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints))
    assert router.rule is None
    assert len({str(router.choose(work=Asked(1, "a"))) for _ in range(50)}) > 1


@pytest.mark.parametrize("name", RULES)
def test_one_that_holds_the_model_comes_first(name: str) -> None:
    router: RequestRouter[Asked] = RequestRouter("app_D", random.Random(7))
    endpoints = tuple(Endpoint(f"r{number}", f"ipc://{number}", ("m",) if number == 2 else ()) for number in range(4))
    router.update(DeploymentTargets("app_D", "app", endpoints=endpoints, router={"name": name}))
    assert {str(router.choose("m", Asked(1, f"s{number}"))) for number in range(20)} == {"Candidate(r2, load=0)"}
    # what loads a model is remembered until the replica says that it holds it
    assert len({str(router.choose("other", Asked(1, f"s{number}"))) for number in range(20)}) == 1


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([(b"x-session-id", b"7")], "7"),
        ([(b"x_session_id", b"7")], "7"),
        ([(b"x-session", b"7")], ""),
        ([], ""),
    ],
)
def test_the_session_of_an_http_request(headers: list[tuple[bytes, bytes]], found: str) -> None:
    assert affinity_of_http(ConsistentHash(random.Random(0)), headers, b"") == found


def test_the_header_is_set_for_one_deployment_or_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ConsistentHash(random.Random(0), header="X-User").header == b"x-user"
    monkeypatch.setenv("RAY_SERVE_SESSION_ID_HEADER_KEY", "X-Correlation-ID")
    by = ConsistentHash(random.Random(0))
    assert affinity_of_grpc(by, (("x-correlation-id", "9"), ("other-bin", b"1")), b"") == "9"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"prompt": "tell me"}', "tell me"),
        (b'{"temperature": 1, "messages": [{"role": "system", "content": "be"}, {"content": [{"text": " short"}]}]}', "be short"),
        (b'{"prompt": ["a", "b"]}', "ab"),
        (b'"only text"', "only text"),
        (b"{no json", "{no json"),
        (b'{"other": 1}', '{"other": 1}'),
        (b"", ""),
        (b'{"prompt": "' + b"x" * 300_000 + b'"}', '{"prompt": "' + "x" * (16 * 1024 - 12)),
    ],
)  # fmt: skip
def test_the_text_of_a_body(body: bytes, found: str) -> None:
    assert affinity_of_http(PrefixAffinity(random.Random(0)), [], body) == found


def test_the_text_of_a_handle_call() -> None:
    class Completion:
        prompt = "from an object"

    assert prompt_of_arguments((3, {"messages": [{"content": "from a dict"}]}), {}) == "from a dict"
    assert prompt_of_arguments((3,), {"request": Completion()}) == "from an object"
    assert prompt_of_arguments((3, None), {"x": [1]}) == ""


def named(config: Any) -> dict[str, Any]:
    deployments = [{"name": "D", "request_router_config": config}]
    document = parse_v2({"applications": [{"import_path": "m:app", "deployments": deployments}]})
    return rule_of(document.applications[0].deployments[0].get("request_router_config"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter", None),
        ("ray.serve.request_router.PowerOfTwoChoicesRequestRouter", None),
        ("power_of_two", None),
        ("ray.serve.experimental.round_robin_router.RoundRobinRouter", "round_robin"),
        ("ray.serve.experimental.capacity_queue_router:CapacityQueueRouter", "least_loaded"),
        ("ray.serve.experimental.consistent_hash_router:ConsistentHashRouter", "consistent_hash"),
        ("ray.serve.llm.request_router.PrefixCacheAffinityRouter", "prefix"),
        *((name, name) for name in RULES),
    ],
)
def test_names_and_import_paths_of_built_in_routers(path: str, name: str | None) -> None:
    assert named({"request_router_class": path}).get("name") == name


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("mine:StickyRouter", "consistent_hash"),
        ("mine.routers.KvAwareRouter", "prefix"),
        ("mine:FewestInQueue", "least_loaded"),
        ("mine:Whatever", "power_of_two"),
        ("ray.llm._internal.serve.kv_aware_router:KVAwareRouter", "prefix"),
        ("mine:RoundRobinRouter", "round_robin"),
    ],
)
def test_a_router_of_user_code_is_refused_with_the_nearest_built_in(path: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"request_router_class: servd runs no routers of user code.*is '{nearest}'"):
        named({"request_router_class": path})


def test_a_router_class_in_code_is_named_like_its_path() -> None:
    kind = type("RoundRobinRouter", (), {"__module__": "ray.serve.experimental.round_robin_router"})
    given = DeploymentConfig(request_router_config=RequestRouterConfig(request_router_class=kind)).given()  # type: ignore[arg-type]
    assert rule_of(given["request_router_config"]) == {"name": "round_robin"}
    with pytest.raises(ValidationError, match="no routers of user code"):
        RequestRouterConfig(request_router_class=Asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("consistent_hash", {"num_virtual_nodes": 0}, "request_router_kwargs.num_virtual_nodes: .*greater than 0"),
        ("consistent_hash", {"num_fallback_replicas": 0}, "num_fallback_replicas: servd tries all replicas"),
        ("consistent_hash", {"header": "a b"}, "request_router_kwargs.header"),
        ("consistent_hash", {"load_factor": 0.5}, "request_router_kwargs.load_factor"),
        ("prefix", {"do_eviction": False}, "always bounded"),
        ("prefix", {"eviction_interval_secs": 5}, "eviction_interval_secs: servd has no"),
        ("prefix", {"eviction_threshold_chars": 10, "eviction_target_chars": 11}, "must be at most"),
        (
            "prefix",
            {"eviction_threshold_chars": 10_000_001},
            "eviction_threshold_chars: .*less than or equal to 10000000",
        ),
        ("round_robin", {"a": 1}, "request_router_kwargs.a: unknown key"),
    ],
)
def test_options_that_a_router_does_not_have(name: str, kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        named({"request_router_class": name, "request_router_kwargs": kwargs})


def test_options_of_rays_classes_are_taken() -> None:
    found = named({"request_router_class": "consistent_hash", "request_router_kwargs": {"num_fallback_replicas": 2}})
    assert found == {"name": "consistent_hash"}
    kwargs = {
        "imbalanced_threshold": 20,
        "match_rate_threshold": 0.2,
        "eviction_threshold_chars": 1000,
        "do_eviction": True,
    }
    found = named({"request_router_class": "prefix", "request_router_kwargs": kwargs})
    assert found == {"name": "prefix", **{key: value for key, value in kwargs.items() if key != "do_eviction"}}
    assert make_rule(found, random.Random(0)) is not None
    # what the controller says is what the rules take
    for name in set(RAY_CLASSES.values()) - {"power_of_two"}:
        assert make_rule(named({"request_router_class": name}), random.Random(0)) is not None


def test_callers_go_without_what_a_later_edition_says() -> None:
    config: dict[str, Any] = {"name": "consistent_hash", "header": "x-user", "of_tomorrow": 1}
    made = make_rule(config, random.Random(0))
    assert made is not None
    assert made.header == b"x-user"
    assert make_rule({"name": "prefix", "of_tomorrow": 1}, random.Random(0)) is not None
    assert make_rule({"name": "of_tomorrow", "header": "x"}, random.Random(0)) is None
    # and of all that a document of today may say they know
    assert {*ConsistentHashOptions.model_fields} == {*ConsistentHash.options}
    assert {*PrefixOptions.model_fields} == {*PrefixAffinity.options}


def test_a_document_takes_the_codes_router_back() -> None:
    deployments = [{"name": "D", "request_router_config": {"request_router_class": "power_of_two"}}]
    document = parse_v2({"applications": [{"import_path": "m:app", "deployments": deployments}]})
    assert document.applications[0].deployments[0]["request_router_config"] == {"request_router_class": "power_of_two"}
