"""A calculator that counts pizzas: a router that asks one of two deployments, by what the request says.

curl -X POST -d '["ADD", 10]' http://127.0.0.1:8000/
"""

import os
from typing import Any

from starlette.requests import Request

import servd
from servd.handle import DeploymentHandle


@servd.deployment(
    user_config={"factor": 3},
    ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"override_factor": "-2"}}},
)
class Multiplier:
    """Multiplies by `user_config["factor"]`, or by the environment variable `override_factor` where that is set."""

    def __init__(self) -> None:
        self.factor = 1

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.factor = int(os.environ.get("override_factor", config["factor"]))  # noqa: SIM112

    def multiply(self, amount: int) -> int:
        return amount * self.factor


@servd.deployment(user_config={"increment": 2}, ray_actor_options={"num_cpus": 0.1})
class Adder:
    """Adds `user_config["increment"]`, or the environment variable `override_increment` where that is set."""

    def __init__(self) -> None:
        self.increment = 0

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.increment = int(os.environ.get("override_increment", config["increment"]))  # noqa: SIM112

    def add(self, amount: int) -> int:
        return amount + self.increment


@servd.deployment(ray_actor_options={"num_cpus": 0.1})
class Router:
    """Takes `[operation, amount]` and says how many pizzas that makes."""

    def __init__(self, multiplier: DeploymentHandle, adder: DeploymentHandle) -> None:
        self.operations = {"MUL": multiplier.multiply, "ADD": adder.add}

    async def __call__(self, request: Request) -> str:
        operation, amount = await request.json()
        pizzas = await self.operations[operation].remote(amount)
        return f"{pizzas} pizzas please!"


serve_dag = Router.bind(Multiplier.bind(), Adder.bind())
