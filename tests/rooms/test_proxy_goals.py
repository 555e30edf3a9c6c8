"""What becomes of an order for a proxy that has no line to the controller."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from servd.controller.executor import Executor
from servd.controller.plan import actions
from servd.controller.plan.observed import Observed
from servd.wire.messages import PROXY, ProxyGoal
from tests.core.build import World, a_goal, some_settings


@pytest.mark.parametrize(("has_served", "is_there", "killed"), [(True, True, 0), (False, True, 1), (True, False, 1)])
def test_only_one_that_never_served_ends_by_force(has_served: bool, is_there: bool, killed: int) -> None:
    """A controller that has just started knows of no proxy whether it listens, and the clients of those that do are to go on."""
    world = World(a_goal())
    world.run()
    (proxy,) = world.observed.proxies.values()
    observed = Observed()
    if is_there:
        observed.put(replace(proxy, listening=False, has_served=has_served))
    ended: list[Any] = []
    supervisor: Any = SimpleNamespace(kill=ended.append)
    server: Any = SimpleNamespace(send=lambda *_: False)
    nobody: Any = None
    executor = Executor(nobody, some_settings(), observed, supervisor, server, nobody, nobody, nobody)
    executor.execute(actions.SetProxyGoal(ProxyGoal(proxy.proxy_id, drain=True), "upgrade"))
    assert ended == [(PROXY, proxy.proxy_id)] * killed
    # what is no end ends nobody
    executor.execute(actions.SetProxyGoal(ProxyGoal(proxy.proxy_id, slots=(1,)), "stands in"))
    assert len(ended) == killed
