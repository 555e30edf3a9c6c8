"""Calls the example's fruit stand again and again until its standard input ends; prints how many calls ended with which status.

python grpc_load.py ADDRESS IN_FLIGHT METHOD
"""

import asyncio
import collections
import json
import sys
from pathlib import Path

import grpc.aio

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "grpc"))

from stand_pb2 import Order
from stand_pb2_grpc import FruitStandStub


async def main(address: str, in_flight: int, method: str, is_patient: bool) -> None:
    """Call until told to stop."""
    counts: collections.Counter[str] = collections.Counter()
    is_over = asyncio.Event()
    how = {"timeout": 30, "wait_for_ready": is_patient}

    async def one_after_another() -> None:
        # a channel each: some of them have a connection to each proxy
        async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stand = FruitStandStub(channel)
            while not is_over.is_set():
                try:
                    if method == "Quotes":
                        bills = [bill.cost async for bill in stand.Quotes(Order(fruit="pear", count=3), **how)]
                        assert bills == [1.0, 2.0, 3.0]
                    else:
                        bill = await stand.Price(Order(fruit="mango", count=2), **how)
                        assert bill.cost == 6.0
                    counts["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    counts[f"{error.code().name}: {error.details()}"] += 1

    tasks = [asyncio.create_task(one_after_another()) for _ in range(in_flight)]
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    is_over.set()
    await asyncio.gather(*tasks)
    print(json.dumps(counts))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:] == ["patient"]))
