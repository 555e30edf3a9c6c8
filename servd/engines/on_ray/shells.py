"""What Ray constructs in a replica: shells that hand everything to `replica`, which they load when they are made.

Ray finds these classes by their names, so importing this module must need nothing but Ray.
"""

import importlib
from collections.abc import AsyncIterator
from typing import Any

from servd.engines.on_ray import stand_ins
from servd.engines.on_ray.private_names import ASGIAppReplicaWrapper


class Shell:
    """A deployment that is called through handles."""

    async def __init__(self, order: dict[str, Any], name: str, others: object = ()) -> None:  # type: ignore[misc]
        del others
        stand_ins.install()
        self._replica = importlib.import_module("servd.engines.on_ray.replica").ClusterReplica(order, name)
        await self._replica.start()

    async def servd_call(self, method: str, parts: list[bytes], request: tuple[Any, ...]) -> Any:
        """One call of servd's handles."""
        return await self._replica.call(method, parts, request)

    async def servd_stream(self, method: str, parts: list[bytes], request: tuple[Any, ...]) -> AsyncIterator[Any]:
        """One call of theirs that gives several values."""
        async for item in self._replica.stream(method, parts, request):
            yield item

    async def reconfigure(self, user_config: Any) -> None:
        """Ray's hook."""
        await self._replica.reconfigure(user_config)

    async def check_health(self) -> None:
        """Ray's hook."""
        await self._replica.check_health()

    async def __del__(self) -> None:
        if replica := self.__dict__.get("_replica"):
            await replica.close()


class IngressShell(Shell, ASGIAppReplicaWrapper):  # type: ignore[misc]
    """The deployment that gets the HTTP requests; an ASGI application to Ray."""

    async def __init__(self, order: dict[str, Any], name: str, others: object = ()) -> None:  # type: ignore[misc]
        await Shell.__init__(self, order, name, others)
        ASGIAppReplicaWrapper.__init__(self, self._replica)
