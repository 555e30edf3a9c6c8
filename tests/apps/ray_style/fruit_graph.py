"""A graph behind DAGDriver; handles in two steps."""

# These imports are used only for type hints:
from typing import Dict, List  # noqa

from ray import serve
from ray.serve.deployment_graph import InputNode
from ray.serve.drivers import DAGDriver
from ray.serve.handle import RayServeDeploymentHandle
from ray.serve.http_adapters import json_request


@serve.deployment(num_replicas=2)
class FruitMarket:
    def __init__(
        self,
        mango_stand: RayServeDeploymentHandle,
        orange_stand: RayServeDeploymentHandle,
        pear_stand: RayServeDeploymentHandle,
    ):
        self.directory = {"MANGO": mango_stand, "ORANGE": orange_stand, "PEAR": pear_stand}

    async def check_price(self, fruit: str, amount: float) -> float:
        if fruit not in self.directory:
            return -1
        else:
            fruit_stand = self.directory[fruit]
            ref: "ray.ObjectRef" = await fruit_stand.check_price.remote(amount)  # noqa: F821
            result = await ref
            return result


@serve.deployment(user_config={"price": 3})
class MangoStand:
    DEFAULT_PRICE = 1

    def __init__(self):
        self.price = self.DEFAULT_PRICE

    def reconfigure(self, config: Dict):
        self.price = config.get("price", self.DEFAULT_PRICE)

    def check_price(self, amount: float) -> float:
        return self.price * amount


@serve.deployment(user_config={"price": 2})
class OrangeStand(MangoStand.func_or_class):
    pass


@serve.deployment(user_config={"price": 4}, ray_actor_options={"num_cpus": 0.1})
class PearStand(MangoStand.func_or_class):
    pass


with InputNode() as query:
    fruit, amount = query[0], query[1]

    mango_stand = MangoStand.bind()
    orange_stand = OrangeStand.bind()
    pear_stand = PearStand.bind()

    fruit_market = FruitMarket.bind(mango_stand, orange_stand, pear_stand)

    net_price = fruit_market.check_price.bind(fruit, amount)

app = DAGDriver.bind(net_price, http_adapter=json_request)
