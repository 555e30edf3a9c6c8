"""A package with relative imports, run as `python -m shop.main PORT`; as written for today's Ray Serve."""

import json
import sys
import urllib.error
import urllib.request
from typing import Dict

import ray
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from .models import Model

app = FastAPI(title="shop")


class Order(BaseModel):
    fruit: str
    amount: int


@serve.deployment(num_replicas=2, max_ongoing_requests=10)
@serve.ingress(app)
class Shop:
    def __init__(self, models: Dict[str, DeploymentHandle]):
        self.models = models
        self.count = metrics.Counter("shop_orders", description="Orders.", tag_keys=("fruit",))

    @app.post("/order")
    async def order(self, order: Order) -> dict:
        if order.fruit not in self.models:
            raise HTTPException(status_code=404, detail="no such fruit")
        self.count.inc(tags={"fruit": order.fruit})
        return {"price": await self.models[order.fruit].predict.remote(order.amount)}


def build(args: Dict[str, str]):
    names = args.get("fruits", "kiwi,mango").split(",")
    return Shop.bind({name: Model.options(name=name).bind(name) for name in names})


def post(port, order):
    url = f"http://127.0.0.1:{port}/shop/order"
    request = urllib.request.Request(url, json.dumps(order).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


if __name__ == "__main__":
    ray.init(ignore_reinit_error=True)
    port = int(sys.argv[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({}), name="shop", route_prefix="/shop")
    assert post(port, {"fruit": "mango", "amount": 3}) == {"price": 30}
    assert post(port, {"fruit": "x", "amount": 3}) == 404
    assert post(port, {"fruit": "x"}) == 422
    states = serve.status().applications["shop"].deployments
    print(sorted(f"{name} {state.status.value}" for name, state in states.items()))
    serve.delete("shop")
    ray.shutdown()
