"""Checked by `make types`: what `deployment`, `bind` and handles know of a class. Nothing runs it."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any, assert_type

from fastapi import FastAPI

import servd
from servd import Application, Deployment, batch, deployment, ingress
from servd.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator, RayServeSyncHandle

api = FastAPI()


class Model:
    def __init__(self, path: str, scale: float = 1.0) -> None:
        self.path, self.scale = path, scale

    async def predict(self, text: str, *, times: int = 1) -> float:
        return len(text) * self.scale * times

    def size(self) -> int:
        return 1

    async def words(self, count: int) -> AsyncGenerator[str, None]:
        yield str(count)

    def letters(self) -> Iterator[bytes]:
        yield b"a"

    @batch(max_batch_size=4)
    async def many(self, numbers: list[int]) -> list[str]:
        return [str(number) for number in numbers]


@ingress(api)
class Api:
    def __init__(self, model: DeploymentHandle[Model], spare: DeploymentHandle | None = None) -> None:
        self.model, self.spare = model, spare

    async def use(self) -> None:
        model = self.model
        predicted = model.options(method_name=Model.predict).remote("a", times=2)
        assert_type(predicted, DeploymentResponse[float])
        assert_type(await predicted, float)
        assert_type(predicted.result(1.0), float)
        assert_type(servd.get(predicted), float)
        assert_type(servd.get([predicted]), list[float])
        assert_type(await model.options(method_name=Model.size).remote(), int)
        assert_type(await model.options(method_name=Model.many).remote(3), str)
        stream = model.options(method_name=Model.words, stream=True).remote(3)
        assert_type(stream, DeploymentResponseGenerator[str])
        async for word in stream:
            assert_type(word, str)
        for letter in model.options(method_name=Model.letters, stream=True, multiplexed_model_id="m").remote():
            assert_type(letter, bytes)
        # by name nothing is known of a method
        assert_type(await model.predict.remote("a", 3), Any)
        async for found in model.options(stream=True).words.remote(3):
            assert_type(found, Any)
        assert_type(model.options(multiplexed_model_id="m"), DeploymentHandle[Model])

        model.options(method_name=Model.predict).remote(3)  # type: ignore[arg-type]
        model.options(method_name=Model.predict).remote()  # type: ignore[call-arg]
        model.options(method_name=Api.use).remote()  # type: ignore[arg-type]
        model.options(method_name=Model.predict, stream=True)  # type: ignore[call-overload]


@deployment
def function(request: str) -> str:
    return request


async def other(request: str) -> str:
    return request


one = deployment(Model)
many = deployment(num_replicas=2)(Model)
front = deployment(name="front")(Api)
assert_type(one.bind("path"), Application[Model])
assert_type(many.options(num_replicas=3).bind("path", scale=2.0), Application[Model])
assert_type(function, Deployment[..., Any])
assert_type(deployment(num_replicas=2)(other), Deployment[..., Any])
app = front.bind(one.bind("path"), spare=many.bind("path"))
assert_type(servd.run(app, local=True), RayServeSyncHandle[Api])
front.bind(function.bind())

one.bind()  # type: ignore[call-arg]
one.bind(3)  # type: ignore[arg-type]
one.options(num_replicas=2).bind("path", scale="large")  # type: ignore[arg-type]
front.bind("path")  # type: ignore[arg-type]
front.bind(front.bind(one.bind("path")))  # type: ignore[arg-type]
servd.run(one)  # type: ignore[arg-type]
