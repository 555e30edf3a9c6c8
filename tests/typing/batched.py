"""Checked by `make types` and by pyright: what `batch` and `multiplexed` make of methods. Nothing runs it."""

from collections.abc import AsyncGenerator
from typing import assert_type

from servd import batch, multiplexed


class Model:
    @batch
    async def bare(self, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    @batch(max_batch_size=4, batch_wait_timeout_s=0.1)
    async def many(self, numbers: list[int]) -> list[str]:
        return [str(number) for number in numbers]

    @batch(max_batch_size=4)
    async def pairs(self, names: list[str], sizes: list[float]) -> list[bytes]:
        return [f"{name}{size}".encode() for name, size in zip(names, sizes, strict=True)]

    @batch(max_batch_size=4)
    async def words(self, counts: list[int]) -> AsyncGenerator[list[str], None]:
        yield [str(count) for count in counts]

    @multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> bytes:
        return model_id.encode()

    @multiplexed
    async def load_bare(self, model_id: str) -> bytes:
        return model_id.encode()

    async def use(self) -> None:
        assert_type(await self.bare("a"), int)
        assert_type(await self.many(3), str)
        assert_type(await self.pairs("a", 1.0), bytes)
        async for word in self.words(3):
            assert_type(word, str)
        self.many.set_max_batch_size(3)
        assert_type(await self.load("a"), bytes)
        assert_type(await self.load_bare("a"), bytes)
        await self.many("x")  # type: ignore[arg-type]
        await self.load(3)  # type: ignore[arg-type]


@batch(max_batch_size=2)
async def doubled(numbers: list[int]) -> list[float]:
    return [2.0 * number for number in numbers]


async def call() -> None:
    assert_type(await doubled(3), float)
