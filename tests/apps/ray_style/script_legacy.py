"""A program as written for Ray Serve 2.4, run as `python script_legacy.py PORT`."""

import asyncio
import sys
import urllib.request

import ray
from ray import serve
from ray.serve.context import get_global_client
from ray.serve.deployment_graph import InputNode
from ray.serve.drivers import DAGDriver
from ray.serve.handle import RayServeDeploymentHandle, RayServeSyncHandle
from ray.serve.http_adapters import json_request


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_concurrent_queries=4)
class Model:
    def __init__(self, weight: int):
        self.weight = weight

    def forward(self, x):
        return self.weight * x


@serve.deployment
def combine(*values):
    return sum(values)


@serve.deployment
class Chain:
    def __init__(self, first: RayServeDeploymentHandle, second: RayServeDeploymentHandle):
        self.first, self.second = first, second

    async def __call__(self, x):
        task: asyncio.Task = self.second.forward.remote(self.first.forward.remote(x))
        ref: ray.ObjectRef = await task
        return await ref


@serve.deployment
class Alone:
    def __call__(self, request):
        return "alone"


with InputNode() as numbers:
    first, second = Model.bind(2), Model.bind(3)
    output = combine.bind(first.forward.bind(numbers[0]), second.forward.bind(numbers[1]))
    graph = DAGDriver.options(route_prefix="/graph").bind(output, http_adapter=json_request)

if __name__ == "__main__":
    port = int(sys.argv[1])
    handle: RayServeSyncHandle = serve.run(graph, host="127.0.0.1", port=port)
    assert ray.get(handle.predict.remote([1, 2])) == 8
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graph", b"[4, 5]", method="POST")
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == b"23"
    chain = serve.run(Chain.bind(Model.bind(2), Model.bind(5)), name="chain", route_prefix="/chain")
    assert ray.get([chain.remote(1), chain.remote(2)]) == [10, 20]
    Alone.deploy()
    assert ray.get(serve.get_deployment("Alone").get_handle().remote(None)) == "alone"
    client = get_global_client()
    assert ray.get(client._controller.get_pid.remote()) > 0
    print(sorted(serve.list_deployments()), client.get_serve_status("chain").app_status.status)
    Alone.delete()
    for name in ("default", "chain"):
        serve.delete(name)
