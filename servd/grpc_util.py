"""What the methods of a gRPC deployment get beside their request. Bears the names of today's `ray.serve.grpc_util`."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from servd.wire.grpc_codes import Code

__all__ = ["RayServegRPCContext", "gRPCInputStream"]

Metadata = tuple[tuple[str, "str | bytes"], ...]

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_END = object()


class RayServegRPCContext:
    """The call that a method serves: the parameter named `grpc_context` gets it.

    Made by servd; in tests of your own `RayServegRPCContext(metadata)` does.
    """

    def __init__(
        self,
        metadata: Metadata = (),
        peer: str = "",
        deadline: float | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._metadata = metadata
        self._peer = peer
        self._deadline = deadline
        self._now = now
        self._code: Any = None
        self._details = ""
        self._trailing: Metadata = ()

    def __repr__(self) -> str:
        return f"RayServegRPCContext(peer={self._peer!r}, code={self._code})"

    def invocation_metadata(self) -> Metadata:
        """Pairs of key and value that the client sent; values of keys that end in `-bin` are bytes."""
        return self._metadata

    def peer(self) -> str:
        """The client, as gRPC names it: `ipv4:127.0.0.1:1234`."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds until nobody waits for the answer any more; None without a limit."""
        if self._deadline is None or self._now is None:
            return None
        return max(0.0, self._deadline - self._now())

    def code(self) -> Any:
        """What `set_code` got last; None before."""
        return self._code

    def set_code(self, code: Any) -> None:
        """End the call with this status, whatever the method returns or raises.

        Args:
            code: a `grpc.StatusCode`, or its number.

        Raises:
            ValueError: no status code.
        """
        code_of(code)
        self._code = code

    def details(self) -> str:
        """What `set_details` got last."""
        return self._details

    def set_details(self, details: str) -> None:
        """Text that goes with the status."""
        self._details = str(details)

    def trailing_metadata(self) -> Metadata:
        """What `set_trailing_metadata` got last."""
        return self._trailing

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, "str | bytes"]]) -> None:
        """Pairs of key and value that the client gets with the status.

        Raises:
            ValueError: a key or value that gRPC cannot send; the text names it.
        """
        pairs = tuple((key, value) for key, value in trailing_metadata)
        for key, value in pairs:
            _check_pair(key, value)
        self._trailing = pairs


class gRPCInputStream:
    """The requests of a client that streams: `async for` in async methods, `for` in others.

    Args:
        receive: gives the next message, in gRPC's bytes; None at the end.
        read: makes a request of them.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[bytes | None]], read: Callable[[bytes], Any], loop: Any = None
    ) -> None:
        self._receive = receive
        self._read = read
        self._loop = loop

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        request = await self._next()
        if request is _END:
            raise StopAsyncIteration
        return request

    def __iter__(self) -> Iterator[Any]:
        try:
            if asyncio.get_running_loop() is self._loop:
                raise RuntimeError("in an async method the requests are read with `async for`")
        except RuntimeError as error:
            if "async for" in str(error):
                raise
        while (request := asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()) is not _END:
            yield request

    async def _next(self) -> Any:
        data = await self._receive()
        return _END if data is None else self._read(data)


def code_of(code: Any) -> Code:
    """The status behind a `grpc.StatusCode` or a number.

    Raises:
        ValueError: there is none.
    """
    value = getattr(code, "value", code)
    number = value[0] if isinstance(value, tuple) else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{code!r} is no status code: take one of grpc.StatusCode")
    return Code(number)


def _check_pair(key: Any, value: Any) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of gRPC metadata: lower-case letters, digits and `_.-`")
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(f"the value of {key} must be bytes, since its name ends in -bin; got {value!r}")
    elif not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {key} must be printable ASCII text, got {value!r}; call the key {key}-bin for bytes"
        )
