"""Control messages and facts to bytes and back, with msgpack, and the frames they travel in on a stream."""

import dataclasses
from typing import Any

import msgpack

from servd.exceptions import ProtocolError
from servd.wire import messages

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_MESSAGE = 1
_LARGE_INTEGER = 2
_BY_NAME: dict[str, type[Any]] = {
    name: thing for name, thing in vars(messages).items() if isinstance(thing, type) and dataclasses.is_dataclass(thing)
}


def register_message(*types: type[Any]) -> None:
    """Make further dataclasses known to `encode_message` (the daemon's, and facts of the controller's own store)."""
    for kind in types:
        _BY_NAME[kind.__name__] = kind


def encode_message(message: Any) -> bytes:
    """Bytes of one message: a dataclass of `messages.py`, nested ones included."""
    return msgpack.packb(message, default=_encode_dataclass)  # type: ignore[no-any-return]


def decode_message(data: bytes | memoryview) -> Any:
    """The message behind the bytes; sequences come back as tuples.

    Raises:
        ProtocolError: not msgpack, an unknown message, or fields that do not fit.
    """
    try:
        return msgpack.unpackb(data, ext_hook=_decode_dataclass, use_list=False, strict_map_key=False)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"cannot decode message: {error!r}") from error


def _encode_dataclass(value: Any) -> msgpack.ExtType:
    if isinstance(value, int):
        # msgpack ends at 64 bits; a user's JSON does not
        return msgpack.ExtType(_LARGE_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    fields = [type(value).__name__, *(getattr(value, f.name) for f in dataclasses.fields(value))]
    return msgpack.ExtType(_MESSAGE, msgpack.packb(fields, default=_encode_dataclass))


def _decode_dataclass(code: int, data: bytes) -> Any:
    if code == _LARGE_INTEGER:
        return int.from_bytes(data, "big", signed=True)
    if code != _MESSAGE:
        raise ProtocolError(f"unknown extension type {code}")
    name, *values = msgpack.unpackb(data, ext_hook=_decode_dataclass, use_list=False, strict_map_key=False)
    kind = _BY_NAME.get(name)
    if kind is None:
        raise ProtocolError(f"unknown message {name!r}")
    return kind(*values)


class RecordReader:
    """Cuts a byte stream into records: 4 bytes length, big-endian, then the message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Messages that became complete with `data`, in order.

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
            found.append(decode_message(bytes(self._buffer[4 : 4 + size])))
            del self._buffer[: 4 + size]
        return found


def record(message: Any) -> bytes:
    """One record for a byte stream: length and message."""
    data = encode_message(message)
    return len(data).to_bytes(4, "big") + data
