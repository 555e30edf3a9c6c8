"""Checked by `make types` with `servd.app.mypy_plugin`: what calls by a method's name, and `bind`, take and give. Nothing runs
it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, assert_type, overload

import servd
from servd import Application, batch, deployment, ingress, multiplexed
from servd.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator, RayServeHandle

Item = TypeVar("Item")
Parameters = ParamSpec("Parameters")


def traced(function: Callable[Parameters, Item]) -> Callable[Parameters, Item]:
    return function


class Scales:
    scale = 1.0

    async def scaled(self, value: float) -> float:
        return value * self.scale

    def reconfigure(self, config: dict[str, float]) -> None:
        self.scale = config["scale"]


@deployment(num_replicas=2)
class Model(Scales):
    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, text: str) -> bytes:
        return text.encode()

    async def predict(self, text: str, *, times: int = 1) -> float:
        return len(text) * times

    def size(self) -> int:
        return 1

    async def words(self, count: int) -> AsyncGenerator[str, None]:
        yield str(count)

    async def pieces(self) -> AsyncIterator[float]:
        yield 1.0

    def letters(self) -> Iterator[bytes]:
        yield b"a"

    def numbers(self) -> Iterable[int]:
        yield 1

    async def opened(self) -> AsyncGenerator[str, None]:
        return self.words(3)

    @traced
    async def watched(self, text: str) -> str:
        return text

    @traced
    def flow(self) -> Iterator[str]:
        yield "a"

    @batch(max_batch_size=4)
    async def many(self, numbers: list[int]) -> list[str]:
        return [str(number) for number in numbers]

    @multiplexed
    async def load(self, model_id: str) -> bytes:
        return model_id.encode()

    @staticmethod
    def shout(text: str) -> str:
        return text.upper()

    @classmethod
    def named(cls, *names: str, **sizes: int) -> list[str]:
        return [*names, *sizes]

    @overload
    async def get(self, key: int) -> int: ...
    @overload
    async def get(self, key: str) -> str: ...
    async def get(self, key: int | str) -> int | str:
        return key

    def first(self, items: list[Item]) -> Item:
        return items[0]

    def anything(self, value: Any, texts: list[str] | None = None) -> Any:
        return value, texts

    def fail(self) -> NoReturn:
        raise ValueError

    def bare(self, value):  # type: ignore[no-untyped-def]
        return value


class Box(Generic[Item]):
    def __init__(self, item: Item) -> None:
        self.item = item

    def open(self) -> Item:
        return self.item


class Sized(Protocol):
    def size(self) -> int: ...


class Other:
    async def predict(self, number: int) -> str:
        return str(number)


@ingress(lambda: None)
class Routes:
    async def about(self) -> str:
        return "routes"


async def calls(model: DeploymentHandle[Model]) -> None:
    assert_type(model.predict.remote("a", times=2), DeploymentResponse[float])
    assert_type(await model.predict.remote("a"), float)
    assert_type(model.size.remote().result(), int)
    assert_type(await model.remote("a"), bytes)
    assert_type(await model.scaled.remote(1), float)
    assert_type(await model.many.remote(3), str)
    assert_type(await model.load.remote("m"), bytes)
    assert_type(await model.shout.remote("a"), str)
    assert_type(await model.named.remote("a", "b", c=3), list[str])
    assert_type(await model.get.remote(3), int)
    assert_type(await model.get.remote("a"), str)
    assert_type(await model.first.remote([1.0]), float)
    assert_type(await model.anything.remote(model, []), Any)
    assert_type(await model.watched.remote("a"), str)
    assert_type(await model.bare.remote("a"), Any)
    assert_type(model.deployment_name, str)
    await model.reconfigure.remote({"scale": 2})

    await model.predict.remote(3)  # type: ignore[arg-type]
    await model.predict.remote()  # type: ignore[call-arg]
    await model.predict.remote("a", time=3)  # type: ignore[call-arg]
    await model.remote(3)  # type: ignore[arg-type]
    await model.many.remote([3])  # type: ignore[arg-type]
    await model.get.remote(b"a")  # type: ignore[call-overload]
    await model.named.remote("a", c="b")  # type: ignore[arg-type]
    await model.predcit.remote("a")  # type: ignore[attr-defined]
    await model.scale.remote()  # type: ignore[misc]


async def responses(model: DeploymentHandle[Model]) -> None:
    """They may be arguments, and arrive as values."""
    size, text = model.size.remote(), model.shout.remote("a")
    assert_type(await model.predict.remote(text, times=size), float)
    assert_type(await model.first.remote(model.named.remote("a")), str)
    await model.predict.remote(size)  # type: ignore[arg-type]


async def streams(model: DeploymentHandle[Model]) -> None:
    several = model.options(stream=True)
    assert_type(several.words.remote(3), DeploymentResponseGenerator[str])
    async for word in several.words.remote(3):
        assert_type(word, str)
    for letter in model.letters.options(stream=True).remote():
        assert_type(letter, bytes)
    assert_type(several.pieces.remote(), DeploymentResponseGenerator[float])
    assert_type(several.numbers.remote(), DeploymentResponseGenerator[int])
    assert_type(several.opened.remote(), DeploymentResponseGenerator[str])
    assert_type(several.flow.remote(), DeploymentResponseGenerator[str])
    assert_type(several.anything.remote(3), DeploymentResponseGenerator[Any])
    assert_type(several.options(session_id="s").words.remote(3), DeploymentResponseGenerator[str])
    assert_type(model.options(method_name="words", stream=True).remote(3), DeploymentResponseGenerator[str])

    several.words.remote("a")  # type: ignore[arg-type]
    several.size.remote()  # type: ignore[misc]
    several.predict.remote("a")  # type: ignore[misc]
    several.wrods.remote(3)  # type: ignore[attr-defined]
    model.words.remote(3)  # type: ignore[misc]
    model.letters.remote()  # type: ignore[misc]
    model.numbers.remote()  # type: ignore[misc]
    model.opened.remote()  # type: ignore[misc]


async def options(model: DeploymentHandle[Model], name: str) -> None:
    assert_type(await model.options(multiplexed_model_id="m").predict.remote("a"), float)
    assert_type(await model.predict.options(session_id="s").remote("a"), float)
    assert_type(await model.options(method_name="predict").remote("a"), float)
    assert_type(await model.options(method_name=Model.predict).remote("a"), float)
    assert_type(await model.options(method_name=name).remote(3), Any)
    assert_type(await model.options(method_name=name).predict.remote("a"), float)

    model.options(method_name="predict").remote(3)  # type: ignore[arg-type]
    model.options(method_name="predcit")  # type: ignore[attr-defined]
    model.predict.options(multiplexed_model_id="m").remote(3)  # type: ignore[arg-type]


async def kept(model: DeploymentHandle[Model], other: DeploymentHandle[Other], is_first: bool) -> None:
    """Handles to methods are values."""
    predict = model.predict
    assert_type(await predict.remote("a"), float)
    untyped: DeploymentHandle = predict
    assert_type(await untyped.remote(3), Any)
    # of two methods neither is taken for the other
    for method in [model.predict, model.size]:
        assert_type(await method.remote(3), Any)
    either = model if is_first else other
    await either.predict.remote(3)  # type: ignore[arg-type]
    plain: DeploymentHandle[Model] = model.predict  # type: ignore[assignment]
    await plain.remote("a")


async def elsewhere(
    box: DeploymentHandle[Box[int]],
    sized: DeploymentHandle[Sized],
    routes: DeploymentHandle[Routes],
    unknown: DeploymentHandle,
    old: RayServeHandle,
) -> None:
    assert_type(await box.open.remote(), int)
    assert_type(await sized.size.remote(), int)
    assert_type(await routes.about.remote(), str)
    # by its routes
    assert_type(await routes.remote("request"), Any)
    assert_type(await unknown.predict.remote(3), Any)
    assert_type(unknown.options(stream=True).words.remote(), DeploymentResponseGenerator[Any])
    old.predict.options(multiplexed_model_id="m").remote(3)


@servd.deployment
class Front:
    def __init__(self, model: DeploymentHandle[Model]) -> None:
        self.model, self.words = model, model.options(stream=True).words

    async def use(self) -> None:
        assert_type(await self.model.predict.remote("a"), float)
        assert_type([word async for word in self.words.remote(3)], list[str])
        self.words.remote("a")  # type: ignore[arg-type]


@deployment(name="bare")
class Bare:
    """Without a constructor of its own."""


@deployment
class Boxed(Generic[Item]):
    def __init__(self, item: Item) -> None:
        self.item = item


class Plain:
    @staticmethod
    def bind(number: int) -> int:
        return number


front = Front.options(num_replicas=2).bind(Model.bind("path"))
assert_type(front, Application[Front])
assert_type(Model.bind("path"), Application[Model])
assert_type(Model.options(name="m").bind("path"), Application[Model])
assert_type(Bare.bind(), Application[Bare])
assert_type(Boxed.bind(3), Any)
assert_type(Plain.bind(3), int)
started = servd.run(front, local=True)
assert_type(started.use.remote().result(), None)

Model.bind()  # type: ignore[call-arg]
Model.bind(3)  # type: ignore[arg-type]
Model.options(num_replicas=2).bind(path=3)  # type: ignore[arg-type]
Model.options(replicas=2)  # type: ignore[call-arg]
Bare.bind("path")  # type: ignore[call-arg]
Front.bind(Bare.bind())  # type: ignore[arg-type]
started.use.remote("a")  # type: ignore[call-arg]
