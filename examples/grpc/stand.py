"""A fruit stand that speaks gRPC: one method of the deployment for each of the service's, by its name."""

from collections.abc import AsyncIterator, Iterator

import grpc
from stand_pb2 import Bill, Order

from servd import deployment
from servd.grpc_util import RayServegRPCContext, gRPCInputStream

PRICES = {"mango": 3.0, "orange": 2.0, "pear": 1.0}


@deployment(num_replicas=2)
class FruitStand:
    """Sells fruit."""

    def Price(self, order: Order, grpc_context: RayServegRPCContext) -> Bill:
        """One order, one bill."""
        if order.fruit not in PRICES:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"no {order.fruit} today")
            return Bill()
        grpc_context.set_trailing_metadata([("stock", "plenty")])
        return self._bill(order)

    def Quotes(self, order: Order) -> Iterator[Bill]:
        """A bill for each number up to the one in the order."""
        for count in range(1, order.count + 1):
            yield self._bill(Order(fruit=order.fruit, count=count))

    async def Total(self, orders: gRPCInputStream) -> Bill:
        """One bill for all orders."""
        cost = 0.0
        async for order in orders:
            cost += self._bill(order).cost
        return Bill(fruit="all", cost=cost)

    async def Counter(self, orders: gRPCInputStream) -> AsyncIterator[Bill]:
        """A bill for each order, as they come."""
        async for order in orders:
            yield self._bill(order)

    def _bill(self, order: Order) -> Bill:
        return Bill(fruit=order.fruit, cost=PRICES[order.fruit] * order.count)


app = FruitStand.bind()
