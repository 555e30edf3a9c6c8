"""The examples of a policy and of a router: valid documents that name what the code has, and code that does what they say."""

import importlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from servd.calls.routing_rules import Candidate, make_rule
from servd.config import AutoscalingConfig, AutoscalingContext
from servd.documents.files import load_document, resolve_paths
from servd.documents.router_names import rule_of
from servd.ground.ids import DeploymentID
from servd.schema import parse_v2
from servd.testing import client

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    loaded = set()

    def load(folder: str, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(EXAMPLES / folder))
        loaded.add(name)
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield load
    # others have modules of these names too
    for name in loaded:
        sys.modules.pop(name, None)


def deployment_of(folder: str) -> dict[str, Any]:
    """The one override of the example's document."""
    path = EXAMPLES / folder / "serve.yaml"
    [app] = parse_v2(resolve_paths(load_document(str(path)).value, str(path.parent))).applications
    [override] = app.deployments
    return dict(override)


@pytest.mark.parametrize(("hour", "load", "count"), [(12, 0.0, 3), (3, 0.0, 1), (3, 10.0, 5), (20, 1.0, 1)])
def test_the_policy_follows_the_clock_and_the_load(
    hour: int, load: float, count: int, code: Callable[[str, str], ModuleType]
) -> None:
    config = AutoscalingConfig(**deployment_of("policies")["autoscaling_config"])
    assert config.policy is not None
    module, _, name = str(config.policy.policy_function).partition(":")
    policy = getattr(code("policies", module), name)(**config.policy.policy_kwargs)
    now = time.mktime((2026, 1, 15, hour, 0, 0, 0, 0, -1))
    context = AutoscalingContext(
        DeploymentID("Shop", "shop"), "Shop", "shop", 1, 1, [], load, current_time=now, config=config
    )
    assert policy(context)[0] == count


def test_each_conversation_has_a_replica_of_its_own() -> None:
    override = deployment_of("routers")
    rule = make_rule(rule_of(override["request_router_config"]), random.Random(1))
    assert rule is not None
    replicas = [Candidate(f"Talks#{number}", "") for number in range(override["num_replicas"])]
    rule.update(replicas)
    chosen = {}
    for busy in replicas:
        busy.load = 3
        for user in map(str, range(30)):
            assert chosen.setdefault(user, rule.choose(replicas, user)) is rule.choose(replicas, user)
    assert set(chosen.values()) == set(replicas)


def test_the_conversation_goes_on(code: Callable[[str, str], ModuleType]) -> None:
    header = deployment_of("routers")["request_router_config"]["request_router_kwargs"]["header"]
    with client(code("routers", "talks").app) as http:
        said = [http.get("/", params={"say": word}, headers={header: "ada"}).json()["said"] for word in "ab"]
        assert said == [["a"], ["a", "b"]]
        assert http.get("/", params={"say": "c"}, headers={header: "bob"}).json()["said"] == ["c"]
        nobody = http.get("/", params={"say": "d"})
        assert (nobody.status_code, nobody.text) == (400, f"say who you are: header {header}")
