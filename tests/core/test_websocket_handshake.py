"""Which handshakes a replica can be given, by their heads."""

import pytest

from servd.proxy.http1_rules import Handshake, read_handshake

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
GOOD = ("Host: x", "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)


def head(*lines: str, first: str = "GET /chat?a=1 HTTP/1.1", early: bytes = b"") -> bytes:
    """As the HTTP/1.1 lane writes a head anew."""
    pairs = [line.partition(": ") for line in lines]
    return "\r\n".join([first, *(f"{name.lower()}: {value}" for name, _, value in pairs), "", ""]).encode() + early


def without(name: str, *more: str) -> bytes:
    return head(*(line for line in GOOD if not line.startswith(name)), *more)


def test_a_right_one() -> None:
    data = head(
        *GOOD, "X-Request-ID: mine", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: c", early=b"\x81\r\n\r\n"
    )
    found = read_handshake(data)
    assert isinstance(found, Handshake)
    assert (found.url, found.early, found.subprotocols) == (b"/chat?a=1", b"\x81\r\n\r\n", ("a", "b", "c"))
    assert found.headers[0] == (b"host", b"x")
    assert found.special == {b"connection": b"upgrade", b"upgrade": b"websocket", b"x-request-id": b"mine"}


def test_equal_headers_that_concern_the_proxy_are_joined() -> None:
    found = read_handshake(head(*GOOD, "X-Forwarded-For: a", "X-Forwarded-For: b"))
    assert found is not None
    assert found.special[b"x-forwarded-for"] == b"a, b"


@pytest.mark.parametrize(
    "data",
    [
        head(*GOOD, first="POST /chat HTTP/1.1"),
        head(*GOOD, first="GET /chat HTTP/1.0"),
        head(*GOOD)[:-2],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        without("Upgrade", "Upgrade: h2c"),
        without("Upgrade", "Upgrade: websocket, h2c"),
        without("Sec-WebSocket-Version"),
        without("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"),
        head(*GOOD, "Sec-WebSocket-Version: 13"),
        without("Sec-WebSocket-Key"),
        head(*GOOD, KEY),
        without("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"),
        without("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="),
        without("Sec-WebSocket-Key", "Sec-WebSocket-Key: =\xff"),
        head(*GOOD, "X-Request-Disconnect-Disabled: ?1"),
    ],
)  # fmt: skip
def test_others_are_left_to_the_proxy(data: bytes) -> None:
    assert read_handshake(data) is None


def test_case_does_not_matter_where_it_must_not() -> None:
    assert read_handshake(without("Upgrade", "Upgrade: WebSocket")) is not None
