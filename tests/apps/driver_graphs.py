"""Graphs behind `DAGDriver`, one per adapter. On their own, so that replicas load nothing of the tests'."""

from typing import Any

import servd
from servd import http_adapters
from servd.dag import InputNode
from servd.drivers import DAGDriver


def repeated(count: int, word: str = "x") -> str:
    """An adapter with FastAPI's parameters."""
    return count * word


@servd.deployment
class Echo:
    def plain(self, value: Any) -> Any:
        return value

    def fail(self, value: Any) -> Any:
        raise LookupError(f"no {value}")

    def shape(self, array: Any) -> Any:
        return [type(array).__name__, *array.shape]

    def totals(self, arrays: Any) -> Any:
        return {key: array.sum() for key, array in arrays.items()}

    async def describe(self, request: Any) -> Any:
        return [request.method, request.url.path, request.path_params, (await request.body()).decode()]

    def __call__(self, request: Any) -> Any:
        return request.url.query


def of(method: str) -> Any:
    with InputNode() as inp:
        return getattr(Echo.bind(), method).bind(inp)


GRAPHS: dict[str, Any] = {
    "requests": lambda: DAGDriver.bind({"/a/{name}": of("describe"), "/class": Echo.bind()}),
    "json": lambda: DAGDriver.bind(
        {"/plain": of("plain"), "/fail": of("fail")}, http_adapter="servd.http_adapters.json_request"
    ),
    "array": lambda: DAGDriver.bind(of("shape"), http_adapter=http_adapters.json_to_ndarray),
    "arrays": lambda: DAGDriver.bind(of("totals"), http_adapter=http_adapters.json_to_multi_ndarray),
    "image": lambda: DAGDriver.bind(of("shape"), http_adapter=http_adapters.image_to_ndarray),
    "frame": lambda: DAGDriver.bind(of("shape"), http_adapter=http_adapters.pandas_read_json),
    "function": lambda: DAGDriver.bind(of("plain"), http_adapter=repeated),
}


def build(args: dict[str, str]) -> Any:
    """An application builder: `graph` among the arguments chooses one."""
    return GRAPHS[args["graph"]]()
