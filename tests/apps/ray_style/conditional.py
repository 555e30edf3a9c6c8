"""A pipeline whose way depends on the input; handles without annotation."""

import ray
from ray import serve
from ray.serve.deployment_graph import InputNode
from ray.serve.drivers import DAGDriver
from ray.serve.http_adapters import json_request


@serve.deployment
class Router:
    def __init__(self, multiplier, adder):
        self.adder = adder
        self.multiplier = multiplier

    async def route(self, op: str, input: int) -> str:
        if op == "ADD":
            amount = await self.adder.add.remote(input)
        else:
            amount = await self.multiplier.multiply.remote(input)
        return f"{amount} pizzas please!"


@serve.deployment(user_config={"factor": 3})
class Multiplier:
    def __init__(self):
        self.factor = 1

    def reconfigure(self, config):
        self.factor = config["factor"]

    def multiply(self, input: int) -> int:
        return input * self.factor


@serve.deployment
class Adder:
    increment: int

    def reconfigure(self, config):
        self.increment = config["increment"]

    async def add(self, input: int) -> int:
        return input + self.increment


@serve.deployment
def stamp(text: str, order: int) -> str:
    return f"#{order}: {text}"


ray.init(ignore_reinit_error=True)

with InputNode() as inp:
    adder = Adder.options(user_config={"increment": 2}).bind()
    router = Router.bind(Multiplier.bind(), adder)
    text = router.route.bind(inp[0], inp[1])
    answer = stamp.bind(text, inp[1])

app = DAGDriver.bind({"/route": text, "/stamped": answer}, http_adapter=json_request)
