"""The wire form of Protocol Buffers, as far as servd's own services of gRPC need it: no library for half a dozen fields.

Source: protobuf.dev, "Encoding".
"""

from collections.abc import Iterator

from servd.exceptions import ProtocolError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


def number_field(field: int, value: int) -> bytes:
    """One field of a whole, not negative number."""
    return varint(field << 3 | _VARINT) + varint(value)


def bytes_field(field: int, value: bytes | str) -> bytes:
    """One field of bytes, text or a message."""
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message, in order; those of fixed size are left out.

    Raises:
        ProtocolError: no message.
    """
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(data, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ProtocolError(f"field of unknown kind {kind}")
        if at + size > len(data):
            raise ProtocolError("a field ends behind its message")
        if kind == _BYTES:
            yield tag >> 3, data[at : at + size]
        at += size


def varint(value: int) -> bytes:
    """A number of base 128, the low digits first. value: >= 0."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ProtocolError("a number without an end")
