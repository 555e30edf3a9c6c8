"""Rules for heads of HTTP/1.1 requests: what is refused, and what becomes of a wish for another protocol, WebSocket say. Pure."""

import binascii
from collections.abc import Mapping
from typing import NamedTuple

from servd.proxy import forwarded_for

FRAME_ROOM = 1024 * 1024
FRAME_BYTES_PER_BYTE = 32
"""What chunks may cost beside their content: so much in all (reads come in pieces of up to 256 KiB), so much per byte."""

HEADER_COST_BYTES = 32
"""What a header counts beside its own bytes, as in HTTP/2 (RFC 9113, 6.5.2): small ones cost more memory than they have bytes."""

SPECIAL = forwarded_for.HEADERS | {
    b"connection",
    b"content-length",
    b"expect",
    b"serve_multiplexed_model_id",
    b"traceparent",
    b"tracestate",
    b"transfer-encoding",
    b"upgrade",
    b"x-request-id",
    b"x-request-timeout-seconds",
}
"""Names of the headers that concern the proxy, in lower case."""

_KEY_BYTES = 16

_KNOWN_UPGRADES = frozenset((b"websocket", b"h2c"))

Headers = list[tuple[bytes, bytes]]


def has_one_host(headers: Headers) -> bool:
    """Whether there is exactly one Host header, as HTTP/1.1 asks for. Names are in lower case."""
    return sum(name == b"host" for name, _ in headers) == 1


def refusal_of_head(headers: Headers, special: Mapping[bytes, bytes], is_http10: bool) -> tuple[int, str] | None:
    """Status and text for a head that is refused; None = it is fine.

    Args:
        special: the headers that concern the proxy; values of equal names are joined.
    """
    coding = special.get(b"transfer-encoding")
    if coding is not None:
        if is_http10:
            return 400, "bad request: Transfer-Encoding in HTTP/1.0"
        first, _, last = coding.lower().rpartition(b",")
        if last.strip() != b"chunked":
            return 400, "bad request: Transfer-Encoding does not end in chunked"
        if first:
            return 501, "no transfer coding but chunked is supported"
    if not is_http10 and not has_one_host(headers):
        return 400, "bad request: a request needs exactly one Host"
    return None


def size_of_head(url: bytes, headers: Headers) -> int:
    """What a head counts against its limit, in bytes."""
    return len(url) + sum(len(name) + len(value) + HEADER_COST_BYTES for name, value in headers)


def refusal_of_size(url_bytes: int, limit: int) -> tuple[int, str]:
    """Status and text for a head that is larger than `limit`: whoever fills most of it is to blame."""
    if 2 * url_bytes > limit:
        return 414, "the request's URI is too long"
    return 431, "the request's head is too large"


def is_other_protocol(method: bytes, special: Mapping[bytes, bytes]) -> bool:
    """Whether a request with an Upgrade header leaves HTTP/1.1. One with a body never does: where the body ends would be
    a matter of opinion. WebSockets begin with GET.
    """
    has_body = special.get(b"content-length", b"0").strip(b"0") or b"transfer-encoding" in special
    wish = special.get(b"upgrade", b"").lower()
    return not has_body and wish in _KNOWN_UPGRADES and (wish != b"websocket" or method == b"GET")


def outlives_client(headers: Headers) -> bool:
    """Whether a request asks to be served to its end also when its client goes before. Names are in lower case."""
    return (b"x-request-disconnect-disabled", b"?1") in headers


def head_bytes(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """A head built anew from its parts."""
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version.encode(), lines)


def without_length(headers: Headers) -> Headers:
    """The headers of a request that leaves HTTP/1.1, which has no body, though it may say how long none is: who takes it over
    would wait for one.
    """
    return [pair for pair in headers if pair[0] != b"content-length"]


def without_upgrade(headers: Headers, *, was_told: bool) -> Headers:
    """The headers of a request whose wish is ignored; was_told: to continue, if it asked."""
    dropped = (b"upgrade", b"expect") if was_told else (b"upgrade",)
    return [pair for pair in headers if pair[0] not in dropped]


class Handshake(NamedTuple):
    """A handshake as it is to be.

    url: the request's target. headers: names in lower case. special: those that concern the proxy, values of equal names joined.
    subprotocols: that the client offers, in its order. early: what it sent behind the head.
    """

    url: bytes
    headers: Headers
    special: dict[bytes, bytes]
    subprotocols: tuple[str, ...]
    early: bytes


def read_handshake(data: bytes) -> Handshake | None:
    """The handshake at the begin of a connection's bytes; None = it is no right one, or asks for what only the proxy can do.

    Args:
        data: a head as `head_bytes` writes it, and what came behind it.

    Source: RFC 6455, 4.2.1.
    """
    head, end, early = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, _, rest = first.partition(b" ")
    url, _, version = rest.partition(b" ")
    if not end or method != b"GET" or version != b"HTTP/1.1":
        return None
    headers: Headers = [line.partition(b": ")[::2] for line in lines]
    if outlives_client(headers):
        return None
    if [value.lower() for value in _values(headers, b"upgrade")] != [b"websocket"]:
        return None
    if _values(headers, b"sec-websocket-version") != [b"13"] or not _is_key(_values(headers, b"sec-websocket-key")):
        return None
    special: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in SPECIAL:
            special[name] = special[name] + b", " + value if name in special else value
    offered = b",".join(_values(headers, b"sec-websocket-protocol")).decode("latin-1")
    subprotocols = tuple(name.strip() for name in offered.split(",") if name.strip())
    return Handshake(url, headers, special, subprotocols, early)


def _values(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _is_key(values: list[bytes]) -> bool:
    try:
        return len(values) == 1 and len(binascii.a2b_base64(values[0], strict_mode=True)) == _KEY_BYTES
    except binascii.Error:
        return False
