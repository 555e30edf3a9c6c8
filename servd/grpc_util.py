"""What the methods of a gRPC deployment get beside their request. Bears the names of today's `ray.serve.grpc_util`."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from servd.wire.grpc.codes import Code
from servd.wire.grpc.messages import Authentication

__all__ = ["RayServegRPCContext", "gRPCInputStream"]

Metadata = tuple[tuple[str, "str | bytes"], ...]

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_END = object()
_PLAIN: Authentication = (
    None,
    (("transport_security_type", (b"insecure",)), ("security_level", (b"TSI_SECURITY_NONE",))),
)
"""Of a connection without TLS."""


class RayServegRPCContext:
    """The call that a method serves: the parameter named `grpc_context` gets it.

    Made by servd; in tests of your own `RayServegRPCContext(metadata)` does.

    Attributes:
        has_begun: a message of the answer was given.
    """

    has_begun = False

    def __init__(
        self,
        metadata: Metadata = (),
        peer: str = "",
        deadline: float | None = None,
        now: Callable[[], float] | None = None,
        authentication: Authentication | None = None,
    ) -> None:
        self._metadata = metadata
        self._peer = peer
        self._deadline = deadline
        self._now = now
        self._authentication = authentication or _PLAIN
        self._code: Any = None
        self._details = ""
        self._trailing: Metadata = ()
        self._compression = 0

    def __repr__(self) -> str:
        return f"RayServegRPCContext(peer={self._peer!r}, code={self._code})"

    def invocation_metadata(self) -> Metadata:
        """Pairs of key and value that the client sent; values of keys that end in `-bin` are bytes."""
        return self._metadata

    def request_id(self) -> str | None:
        """`request_id` of the client's metadata; None without. `get_replica_context` and logs have one in any case."""
        return self._said("request_id")

    def application(self) -> str | None:
        """`application` of the client's metadata; None without."""
        return self._said("application")

    def multiplexed_model_id(self) -> str | None:
        """`multiplexed_model_id` of the client's metadata; None without."""
        return self._said("multiplexed_model_id")

    def traceparent(self) -> str | None:
        """`traceparent` of the client's metadata; None without."""
        return self._said("traceparent")

    def tracestate(self) -> str | None:
        """`tracestate` of the client's metadata; None without."""
        return self._said("tracestate")

    def _said(self, key: str) -> str | None:
        found = (value for name, value in reversed(self._metadata) if name == key and isinstance(value, str))
        return next(found, None)

    def peer(self) -> str:
        """The client, as gRPC names it: `ipv4:127.0.0.1:1234`."""
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """What is known of the client's connection: `transport_security_type`, and with a certificate of the client
        `x509_common_name`, `x509_subject_alternative_name` and others, as gRPC names them."""
        return {key: list(values) for key, values in self._authentication[1]}

    def peer_identity_key(self) -> str | None:
        """The key of `auth_context` that says who the client is; None for one without a certificate."""
        return self._authentication[0]

    def peer_identities(self) -> list[bytes] | None:
        """Who the client is, by its certificate; None for one without."""
        key = self._authentication[0]
        return None if key is None else self.auth_context().get(key)

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

    def compression(self) -> int:
        """What `set_compression` got last, as a number; 0 before."""
        return self._compression

    def set_compression(self, compression: Any) -> None:
        """Compress the messages of the answer. In a method that streams: before its first one.

        Args:
            compression: a `grpc.Compression`, or its number.

        Raises:
            ValueError: there is no such kind.
            RuntimeError: it is too late, a message of the answer was given.
        """
        if self.has_begun:
            raise RuntimeError("set_compression must be called before the first message of the answer")
        if isinstance(compression, bool) or compression not in (0, 1, 2):
            raise ValueError(f"{compression!r} is no kind of compression: take one of grpc.Compression")
        self._compression = int(compression)


class gRPCInputStream:
    """The requests of a client that streams: `async for` in async methods, `for` in others.

    Made by servd; in tests of your own `gRPCInputStream(an_async_iterator)` does.

    Args:
        request_iterator: gives the requests.
        cancel_event: set = the client has gone.
    """

    def __init__(self, request_iterator: AsyncIterator[Any], *, cancel_event: asyncio.Event | None = None) -> None:
        self._requests = request_iterator
        self._cancel_event = cancel_event or asyncio.Event()
        self._is_exhausted = False
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def __repr__(self) -> str:
        return f"gRPCInputStream(is_exhausted={self._is_exhausted}, is_cancelled={self.is_cancelled()})"

    @property
    def is_exhausted(self) -> bool:
        """Whether there is nothing more to come."""
        return self._is_exhausted

    def is_cancelled(self) -> bool:
        """Whether the client has gone, or `cancel` was called."""
        return self._cancel_event.is_set()

    def cancel(self) -> None:
        """End it here: nothing more is given."""
        self._cancel_event.set()

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
        if self._loop is None:
            raise RuntimeError("it was made outside of an event loop: read the requests with `async for`")
        while (request := asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()) is not _END:
            yield request

    async def _next(self) -> Any:
        if not self._is_exhausted and not self._cancel_event.is_set():
            async for request in self._requests:
                return request
        self._is_exhausted = True
        return _END


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
