"""A deployment that scales with its load, and one that asks for it by name."""

import asyncio

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig


@serve.deployment
class SignalDeployment:
    def __init__(self):
        self.event = asyncio.Event()

    async def send(self, clear: bool = False):
        self.event.set()
        if clear:
            self.event.clear()

    async def wait(self):
        await self.event.wait()


@serve.deployment(
    autoscaling_config=AutoscalingConfig(
        min_replicas=0,
        max_replicas=2,
        target_num_ongoing_requests_per_replica=1.0,
        metrics_interval_s=0.1,
        look_back_period_s=0.2,
        upscale_delay_s=0,
        downscale_delay_s=2,
    ),
    max_concurrent_queries=10,
    graceful_shutdown_timeout_s=5,
)
class Blocked:
    def __call__(self, request):
        signal = serve.get_deployment("autoscaled_SignalDeployment").get_handle()
        ray.get(signal.wait.remote())
        return "released"


@serve.deployment
class Front:
    def __init__(self, blocked, signal):
        self.blocked, self.signal = blocked, signal

    async def __call__(self, request):
        if request.url.path.endswith("/send"):
            await self.signal.send.remote()
            return "sent"
        return await self.blocked.remote(request)


app = Front.bind(Blocked.bind(), SignalDeployment.bind())
