"""Control messages and facts to bytes and back, with msgpack, and the frames they travel in on a stream.

Fields travel by their place. Editions of one protocol understand each other: fields are only added, at the end and with a
default, so one that lacks at the end has its default, and one that this edition does not know is left out; so is a whole
message that it does not know.
"""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack

from servd.exceptions import ProtocolError
from servd.wire import build_messages, messages, policy_messages

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_MESSAGE = 1
_LARGE_INTEGER = 2
Renew = Callable[[str, list[Any]], list[Any]]
"""Name and values of a message of an older form -> its values in today's."""
_BY_NAME: dict[str, type[Any]] = {
    name: thing
    for module in (build_messages, messages, policy_messages)
    for name, thing in vars(module).items()
    if isinstance(thing, type) and dataclasses.is_dataclass(thing)
}

logger = logging.getLogger(__name__)


class UnknownMessageError(ProtocolError):
    """Whole, but of a kind that this edition does not know."""


def register_message(*types: type[Any]) -> None:
    """Make further dataclasses known to `encode_message` (the daemon's, and facts of the controller's own store)."""
    for kind in types:
        _BY_NAME[kind.__name__] = kind


def encode_message(message: Any) -> bytes:
    """Bytes of one message: a dataclass of `messages.py`, nested ones included."""
    return msgpack.packb(message, default=_encode_dataclass)  # type: ignore[no-any-return]


def decode_message(data: bytes | memoryview, renew: Renew | None = None) -> Any:
    """The message behind the bytes; sequences come back as tuples.

    Args:
        renew: for bytes that a protocol before this one wrote.

    Raises:
        UnknownMessageError: another edition's.
        ProtocolError: not msgpack, or fields that do not fit.
    """
    hook = _decode_dataclass if renew is None else partial(_decode_dataclass, renew=renew)
    try:
        return msgpack.unpackb(data, ext_hook=hook, use_list=False, strict_map_key=False)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"cannot decode message: {error!r}") from error


def _encode_dataclass(value: Any) -> msgpack.ExtType:
    if isinstance(value, int):
        # msgpack ends at 64 bits; a user's JSON does not
        return msgpack.ExtType(_LARGE_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    kind = type(value)
    fields = [kind.__name__, *[getattr(value, name) for name in kind.__match_args__]]
    return msgpack.ExtType(_MESSAGE, msgpack.packb(fields, default=_encode_dataclass))


def _decode_dataclass(code: int, data: bytes, renew: Renew | None = None) -> Any:
    if code == _LARGE_INTEGER:
        return int.from_bytes(data, "big", signed=True)
    if code != _MESSAGE:
        raise ProtocolError(f"unknown extension type {code}")
    hook = _decode_dataclass if renew is None else partial(_decode_dataclass, renew=renew)
    name, *values = msgpack.unpackb(data, ext_hook=hook, use_list=False, strict_map_key=False)
    if renew is not None:
        values = renew(name, values)
    kind = _BY_NAME.get(name)
    if kind is None:
        raise UnknownMessageError(f"unknown message {name!r}")
    return kind(*values[: len(kind.__match_args__)])


class RecordReader:
    """Cuts a byte stream into records: 4 bytes length, big-endian, then the message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Messages that became complete with `data`, in order; those of kinds that this edition does not know are left out.

        Raises:
            ProtocolError: a record is larger than 64 MiB or cannot be decoded.
        """
        self._buffer += data
        found = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_MESSAGE_BYTES:
                raise ProtocolError(f"record of {size} bytes, at most {MAX_MESSAGE_BYTES}")
            if len(self._buffer) < 4 + size:
                break
            data = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            try:
                found.append(decode_message(data))
            except UnknownMessageError as error:
                logger.warning("message_of_another_edition_ignored reason=%s", error)
        return found


def record(message: Any) -> bytes:
    """One record for a byte stream: length and message."""
    data = encode_message(message)
    return len(data).to_bytes(4, "big") + data
