"""Calls the fruit stand: python examples/grpc/buy.py [HOST:PORT]"""

import sys

import grpc
from stand_pb2 import Order
from stand_pb2_grpc import FruitStandStub


def main(address: str) -> None:
    """One call of each kind."""
    with grpc.insecure_channel(address) as channel:
        stand = FruitStandStub(channel)
        bill, call = stand.Price.with_call(Order(fruit="mango", count=2), timeout=5)
        print(f"2 mangos: {bill.cost}, request {dict(call.trailing_metadata())['request_id']}")
        print("1 to 3 pears:", [bill.cost for bill in stand.Quotes(Order(fruit="pear", count=3))])
        orders = [Order(fruit="mango", count=1), Order(fruit="orange", count=2)]
        print("a mango and 2 oranges:", stand.Total(iter(orders)).cost)
        print("one by one:", [bill.cost for bill in stand.Counter(iter(orders))])
        try:
            stand.Price(Order(fruit="kiwi", count=1))
        except grpc.RpcError as error:
            print(f"a kiwi: {error.code().name}, {error.details()}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["127.0.0.1:9000"]))
