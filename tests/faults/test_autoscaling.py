"""Load makes replicas and lack of it ends them, with real processes."""

import threading
from pathlib import Path
from typing import Any

import pytest

from servd.ground.clock import SystemClock
from tests.system.running_daemon import RunningDaemon, a_daemon, eventually, settings_in

pytestmark = pytest.mark.slow

APPLICATION = """
import asyncio

from servd import deployment


@deployment(autoscaling_config={
    "min_replicas": 0, "max_replicas": 4, "target_num_ongoing_requests_per_replica": 1,
    "look_back_period_s": 0.5, "upscale_delay_s": 0, "downscale_delay_s": 0.2,
})
class Slow:
    async def __call__(self, request):
        await asyncio.sleep(float(request.query_params.get("hold", "0")))
        return "done"


app = Slow.bind()
"""
HOLD_S = 2.0


def slow(daemon: RunningDaemon) -> dict[str, Any]:
    return dict(daemon.status()["applications"]["default"]["deployments"]["default_Slow"])


def test_requests_wake_a_deployment_at_zero_and_load_makes_replicas_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(APPLICATION)
    clock = SystemClock()
    with a_daemon(settings_in(tmp_path)) as daemon:
        daemon.deploy(tmp_path, "slow:app")
        assert slow(daemon)["replicas"] == []
        assert daemon.get() == (200, "done"), "the request waits and wakes it"
        answers: list[tuple[int, str]] = []
        clients = [threading.Thread(target=lambda: answers.append(daemon.get(f"/?hold={HOLD_S}"))) for _ in range(4)]
        began = clock.now()
        for client in clients:
            client.start()
        eventually(lambda: slow(daemon)["target_num_replicas"] > 1)
        # within 1 s on a machine that does nothing else
        assert clock.now() - began < HOLD_S
        assert "mean load" in slow(daemon)["autoscaling"]["reason"]
        for client in clients:
            client.join()
        assert answers == [(200, "done")] * 4
        eventually(lambda: slow(daemon)["replicas"] == [])
        assert daemon.get() == (200, "done")
