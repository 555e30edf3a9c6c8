"""A program as written for today's Ray Serve, run as `python script_today.py PORT`."""

import asyncio
import logging
import sys
import urllib.request
from typing import AsyncGenerator, List

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import StreamingResponse

logger = logging.getLogger("ray.serve")


def get(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{path}") as answer:
        return answer.read().decode()


@serve.deployment(
    autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=3, target_ongoing_requests=2),
    logging_config=LoggingConfig(log_level="DEBUG", encoding="JSON"),
    max_ongoing_requests=5,
)
class Doubler:
    def __init__(self):
        assert asyncio.get_running_loop()

    async def __call__(self, x):
        return 2 * x

    def where(self):
        context = serve.get_replica_context()
        return context.app_name, context.deployment, context.replica_tag == context.replica_id.unique_id


@serve.deployment
class Streamer:
    def __init__(self, doubler: DeploymentHandle):
        self.doubler = doubler

    @serve.batch(max_batch_size=5, batch_wait_timeout_s=0.05)
    async def numbers(self, limits: List[int]) -> AsyncGenerator[list, None]:
        for i in range(max(limits)):
            yield [str(i) if i < limit else StopIteration for limit in limits]

    async def doubled(self, limit):
        for i in range(limit):
            response: DeploymentResponse = self.doubler.remote(self.doubler.remote(i))
            yield await response

    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.numbers(int(request.query_params["max"])), media_type="text/plain")


@serve.deployment
def query(request: Request):
    return request.query_params


if __name__ == "__main__":
    ray.init()
    handle = serve.run(
        Streamer.bind(Doubler.bind()), name="today", route_prefix="/today", logging_config={"log_level": "WARNING"}
    )
    assert get("/today?max=3") == "012"
    items: DeploymentResponseGenerator = handle.options(stream=True).doubled.remote(3)
    assert list(items) == [0, 4, 8]
    doubler = serve.get_deployment_handle("Doubler", app_name="today")
    assert doubler.remote(4).result(timeout_s=20) == 8
    assert doubler.where.remote().result() == ("today", "Doubler", True)
    try:
        serve.get_app_handle("nothing")
    except RayServeException as error:
        logger.info(error)
    first, second = serve.run_many(
        [
            serve.RunTarget(query.bind(), name="first", route_prefix="/first"),
            serve.RunTarget(query.bind(), name="second", route_prefix=None),
        ]
    )
    print(get("/first?a=b&c=d"), serve.status().applications["second"].status)
    for name in ("today", "first", "second"):
        serve.delete(name)
