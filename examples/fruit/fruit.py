"""A fruit stand: three stands that know their price, a market that knows the stands, and a graph in front of them.

curl -X POST -d '["MANGO", 2]' http://127.0.0.1:8000/
"""

from typing import Any

import servd
from servd.deployment_graph import InputNode
from servd.drivers import DAGDriver
from servd.handle import RayServeDeploymentHandle
from servd.http_adapters import json_request


class FruitStand:
    """Sells one kind of fruit; the price comes from `user_config` and changes without a restart."""

    def __init__(self) -> None:
        self.price = 0.0

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.price = config["price"]

    def check_price(self, amount: float) -> float:
        return self.price * amount


# one class, three deployments
MangoStand = servd.deployment(name="MangoStand", user_config={"price": 3})(FruitStand)
OrangeStand = servd.deployment(name="OrangeStand", user_config={"price": 2})(FruitStand)
PearStand = servd.deployment(name="PearStand", user_config={"price": 4})(FruitStand)


@servd.deployment(num_replicas=2)
class FruitMarket:
    """Asks the right stand; a fruit that nobody sells costs -1."""

    def __init__(
        self,
        mango_stand: RayServeDeploymentHandle,
        orange_stand: RayServeDeploymentHandle,
        pear_stand: RayServeDeploymentHandle,
    ) -> None:
        self.directory = {"MANGO": mango_stand, "ORANGE": orange_stand, "PEAR": pear_stand}

    async def check_price(self, order: tuple[str, float]) -> float:
        fruit, amount = order
        if fruit not in self.directory:
            return -1
        # two steps: the first await sends the call, the second one waits for its result
        ref = await self.directory[fruit].check_price.remote(amount)
        price: float = await ref
        return price


with InputNode() as order:
    market = FruitMarket.bind(MangoStand.bind(), OrangeStand.bind(), PearStand.bind())
    deployment_graph = DAGDriver.bind(market.check_price.bind(order), http_adapter=json_request)
