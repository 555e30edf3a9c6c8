"""The protocol of WebSockets, frame by frame; the cases are of the kinds that Autobahn's test suite has."""

import random
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate

from servd.wire.websocket.protocol import WebSocketProtocol, agree

MASK = b"\x37\xfa\x21\x3d"
TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
KEY = (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")
DEFLATE = b"permessage-deflate; client_max_window_bits"


def frame(opcode: int, body: bytes = b"", *, fin: bool = True, bits: int = 0, mask: bytes = MASK) -> bytes:
    """A client's frame; mask: b"" = none."""
    first, size, masked = 0x80 * fin | bits << 4 | opcode, len(body), 0x80 if mask else 0
    if size < 126:
        head = bytes([first, masked | size])
    elif size < 65536:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    repeated = mask * (size // 4 + 1)
    return head + mask + (bytes(a ^ b for a, b in zip(body, repeated, strict=False)) if mask else body)


def messages(protocol: WebSocketProtocol, data: bytes, piece: int = 0) -> list[Any]:
    """Texts and bytes of the messages in this; piece: bytes fed at a time, 0 = all at once."""
    found: list[Any] = []
    for start in range(0, len(data) or 1, piece or len(data) or 1):
        protocol.feed(data[start : start + (piece or len(data))])
        while (message := protocol.next_message()) is not None or protocol.is_interrupted:
            if message is not None:
                assert message["type"] == "websocket.receive"
                found.append(message.get("text", message.get("bytes")))
    return found


def written(pieces: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(pieces)


def code_of(protocol: WebSocketProtocol) -> int:
    """The code with which the server has said farewell."""
    answer = written(protocol.answers())
    assert answer[:1] == b"\x88", answer
    return int.from_bytes(answer[2:4], "big")


@pytest.mark.parametrize("piece", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 65539])
def test_messages_of_each_size_arrive_in_any_pieces(size: int, piece: int) -> None:
    if size > 1000 and 0 < piece < 1000:
        piece *= 997
    body = random.Random(size).randbytes(size)
    text = "".join(chr(65 + number % 26) for number in range(size))
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(BINARY, body) + frame(TEXT, text.encode()), piece) == [body, text]
    assert not protocol.answers()
    assert protocol.unread_bytes == 0


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_what_is_sent_is_framed(size: int) -> None:
    body = b"x" * size
    protocol = WebSocketProtocol()
    for first, data in ((0x81, written(protocol.text(body))), (0x82, written(protocol.binary(body)))):
        assert data == bytes([first]) + frame(BINARY, body, mask=b"")[1:]


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("payload", [b"", b"hello", b"\x00\xff\xfe", b"x" * 125])
def test_pings_are_answered(payload: bytes, piece: int) -> None:
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(PING, payload), piece) == []
    assert written(protocol.answers()) == bytes([0x8A, len(payload)]) + payload


def test_pongs_that_nobody_asked_for_are_nothing() -> None:
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(PONG) + frame(PONG, b"hello") + frame(PING, b"a")) == []
    assert written(protocol.answers()) == b"\x8a\x01a"
    assert written(protocol.ping()) == b"\x89\0"


@pytest.mark.parametrize("piece", [0, 1])
def test_control_frames_may_come_within_a_message(piece: int) -> None:
    data = frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONT, b"", fin=False) + frame(PONG)
    protocol = WebSocketProtocol()
    assert messages(protocol, data + frame(CONT, b"b") + frame(BINARY, b"c"), piece) == ["ab", b"c"]
    assert written(protocol.answers()) == b"\x8a\x01p"


WRONG = {
    "a reserved bit": frame(TEXT, b"hello", bits=1),
    "two reserved bits": frame(TEXT, b"hello", bits=6),
    "the bit of compression that was not agreed on": frame(TEXT, b"hello", bits=4),
    "a reserved bit of a ping": frame(PING, b"hello", bits=7),
    "a reserved bit of a farewell": frame(CLOSE, bits=7),
    "opcode 3": frame(3),
    "opcode 5": frame(5, b"hello"),
    "opcode 7": frame(7),
    "opcode 11": frame(11),
    "opcode 15": frame(15, b"hello"),
    "a ping that is too long": frame(PING, b"x" * 126),
    "a farewell that is too long": frame(CLOSE, b"\x03\xe8" + b"x" * 124),
    "a ping in parts": frame(PING, b"a", fin=False),
    "a farewell in parts": frame(CLOSE, fin=False),
    "no mask": frame(TEXT, b"hello", mask=b""),
    "a large one without a mask": frame(TEXT, b"x" * 70_000, mask=b"")[:20],
    "a part of nothing": frame(CONT, b"hello"),
    "a first part of nothing": frame(CONT, b"hello", fin=False),
    "a message within another": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "a binary one within a text": frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False),
    "a part behind the last one": frame(TEXT, b"a", fin=False) + frame(CONT, b"b") + frame(CONT, b"c"),
    "a farewell of one byte": frame(CLOSE, b"\x03"),
}


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_against_the_rules_is_told_so(what: str, piece: int) -> None:
    protocol = WebSocketProtocol()
    good = messages(protocol, frame(TEXT, b"before") + WRONG[what] + frame(TEXT, b"after"), piece)
    assert good[0] == "before"
    assert "after" not in good
    assert protocol.is_ended
    assert not protocol.can_send
    assert protocol.farewell is None
    assert protocol.told_off is not None
    assert protocol.told_off[0] == code_of(protocol) == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
def test_farewells_are_answered_alike(code: int) -> None:
    payload = code.to_bytes(2, "big") + "bye \N{EURO SIGN}".encode()
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(CLOSE, payload) + frame(TEXT, b"late") + frame(PING)) == []
    assert protocol.farewell == (code, "bye \N{EURO SIGN}")
    assert written(protocol.answers()) == bytes([0x88, len(payload)]) + payload
    assert not protocol.close(1000), "it has been said"
    assert (protocol.is_ended, protocol.can_send, protocol.unread_bytes) == (True, False, 0)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535])
def test_farewells_with_codes_that_are_none(code: int) -> None:
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(CLOSE, code.to_bytes(2, "big"))) == []
    assert code_of(protocol) == 1002
    if 0 < code < 5000 and code != 1005:
        with pytest.raises(ValueError, match=str(code)):
            WebSocketProtocol().close(code)


def test_farewells_without_a_code() -> None:
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(CLOSE)) == []
    assert protocol.farewell == (1005, "")
    assert written(protocol.answers()) == b"\x88\0"
    assert written(WebSocketProtocol().close(1005)) == b"\x88\0"


def test_the_server_says_farewell_first() -> None:
    protocol = WebSocketProtocol()
    said = written(protocol.close(4001, "over \N{EURO SIGN}" * 30))
    assert said[:4] == b"\x88" + bytes([len(said) - 2]) + (4001).to_bytes(2, "big")
    assert 120 <= len(said) - 4 <= 123, "cut behind a whole character"
    assert said[4:].decode().startswith("over \N{EURO SIGN}over ")
    assert not protocol.can_send
    assert messages(protocol, frame(TEXT, b"on its way") + frame(CLOSE, b"\x0f\xa1")) == ["on its way"]
    assert protocol.farewell == (4001, "")
    assert not protocol.answers()


def test_a_reason_that_is_no_text() -> None:
    protocol = WebSocketProtocol()
    assert messages(protocol, frame(CLOSE, b"\x03\xe8\xff\xff")) == []
    assert code_of(protocol) == 1007


GOOD_TEXTS = ["", "hello", "Hello-\xb5@\xdf\xf6\xe4\xfc\xe0\xe1-UTF-8!!", "\x00", "\x7f\x80", "\u07ff\u0800",
              "\ud7ff\ue000\ufffd", "\uffff\U00010000\U0010ffff", "\ufffe\U0001fffe", "κόσμε"]  # fmt: skip
BAD_TEXTS = [b"\x80", b"\xbf", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xc1\xbf", b"\xce", b"\xce\xba\xe1\xbd",
             b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe",
             b"\xff", b"hello\xffworld", "κόσμε".encode() + b"\xed\xa0\x80edited"]  # fmt: skip


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_texts(text: str) -> None:
    body = text.encode()
    bits = [frame(CONT, body[at : at + 1], fin=False) for at in range(len(body))]
    protocol = WebSocketProtocol()
    data = frame(TEXT, body) + frame(TEXT, b"", fin=False) + b"".join(bits) + frame(CONT)
    assert messages(protocol, data) == [text, text]
    assert written(protocol.text(body)).endswith(body)


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("body", BAD_TEXTS)
def test_texts_that_are_none(body: bytes, is_whole: bool) -> None:
    protocol = WebSocketProtocol()
    data = frame(TEXT, body) if is_whole else frame(TEXT, body[:1], fin=False) + frame(CONT, body[1:])
    assert messages(protocol, data + frame(TEXT, b"after")) == []
    assert protocol.told_off is not None
    assert protocol.told_off[0] == code_of(protocol) == 1007
    assert messages(WebSocketProtocol(), frame(BINARY, body)) == [body], "bytes may be anything"


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(("size", "is_good"), [(1000, True), (1001, False), (10_000_000_000, False)])
def test_the_limit_of_a_message(size: int, is_good: bool, is_whole: bool) -> None:
    protocol = WebSocketProtocol(max_bytes=1000)
    if size > 10_000:
        head = b"\x81\xff" + size.to_bytes(8, "big") + MASK
        data = head if is_whole else frame(TEXT, b"a", fin=False) + b"\x80" + head[1:]
    elif is_whole:
        data = frame(BINARY, b"x" * size)
    else:
        parts = [frame(CONT, b"x" * 100, fin=False)] * 9
        data = frame(BINARY, b"x" * 100, fin=False) + b"".join(parts) + frame(CONT, b"x" * (size - 1000))
    assert len(messages(protocol, data)) == is_good
    if not is_good:
        assert protocol.told_off is not None
        assert protocol.told_off[0] == code_of(protocol) == 1009


@pytest.mark.parametrize("wrong", [frame(TEXT, b"\xff"), frame(CONT, b"a"), frame(CLOSE, b"\x03")])
def test_whoever_breaks_the_rules_behind_a_farewell_is_not_told(wrong: bytes) -> None:
    protocol = WebSocketProtocol()
    protocol.close(4000)
    assert messages(protocol, wrong) == []
    assert (protocol.is_ended, protocol.told_off, protocol.answers()) == (True, None, [])


def test_messages_wait_as_bytes_until_they_are_asked_for() -> None:
    protocol = WebSocketProtocol()
    protocol.feed(frame(TEXT, b"a") * 1000)
    assert protocol.next_message() == {"type": "websocket.receive", "text": "a"}
    assert protocol.unread_bytes == 999 * 7
    protocol.feed(frame(TEXT, b"b"))
    rest = messages(protocol, b"")
    assert rest == ["a"] * 999 + ["b"]


def test_parts_of_nothing_cost_nothing() -> None:
    protocol = WebSocketProtocol()
    protocol.feed(frame(BINARY, b"x", fin=False) + frame(CONT, fin=False) * 10_000)
    assert protocol.next_message() is None
    assert protocol.is_interrupted, "others have their turn"
    assert messages(protocol, b"") == []
    assert len(protocol._parts) == 1
    assert protocol.unread_bytes == 0


# --- compression ------------------------------------------------------------------------------------------------------


class Packer:
    """A client's end of the compression that was agreed on."""

    def __init__(self, offer: bytes = DEFLATE) -> None:
        self.agreed = agree([KEY, (b"sec-websocket-extensions", offer)], None)
        self.protocol = WebSocketProtocol(self.agreed.extensions)
        (self.extension,) = self.agreed.extensions
        assert isinstance(self.extension, PerMessageDeflate)
        self._pack = zlib.compressobj(wbits=-self.extension.remote_max_window_bits)
        self._unpack = zlib.decompressobj(wbits=-self.extension.local_max_window_bits)

    def pack(self, body: bytes) -> bytes:
        return (self._pack.compress(body) + self._pack.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def unpack(self, data: bytes) -> bytes:
        size = data[1]
        start = 2 if size < 126 else 4 if size == 126 else 10
        assert data[0] & 0x40
        return self._unpack.decompress(data[start:] + b"\0\0\xff\xff")


@pytest.mark.parametrize("size", [0, 16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072])
@pytest.mark.parametrize(
    "offer", [b"permessage-deflate", DEFLATE, b"permessage-deflate; client_max_window_bits=9; server_max_window_bits=9"]
)
def test_compressed_messages(offer: bytes, size: int) -> None:
    packer = Packer(offer)
    body = (b'{"name": "value", "number": %d}' % size * (size // 20 + 1))[:size]
    for _ in range(5):
        assert messages(packer.protocol, frame(BINARY, packer.pack(body), bits=4)) == [body]
        assert packer.unpack(written(packer.protocol.binary(body))) == body
    assert messages(packer.protocol, frame(TEXT, b"plain all the same")) == ["plain all the same"]
    packed = packer.pack(b"in parts")
    data = frame(TEXT, packed[:3], bits=4, fin=False) + frame(PING) + frame(CONT, packed[3:])
    assert messages(packer.protocol, data) == ["in parts"]


def test_compressed_messages_that_are_too_large() -> None:
    packer = Packer()
    protocol = WebSocketProtocol(packer.agreed.extensions, max_bytes=100_000)
    assert messages(protocol, frame(BINARY, packer.pack(b"x" * 100_000), bits=4)) == [b"x" * 100_000]
    assert messages(protocol, frame(BINARY, packer.pack(b"x" * 100_001), bits=4)) == []
    assert code_of(protocol) == 1009


@pytest.mark.parametrize(("body", "bits"), [(b"\xff\xff\xff\xff", 4), (b"hello", 5)])
def test_compression_that_is_none(body: bytes, bits: int) -> None:
    packer = Packer()
    assert messages(packer.protocol, frame(TEXT, body, bits=bits)) == []
    assert code_of(packer.protocol) == 1002


@pytest.mark.parametrize(
    "offer",
    [b"permessage-deflate; unknown", b"permessage-deflate; client_max_window_bits=99", b"x-webkit", b", ; =", b"\xff"],
)
def test_what_cannot_be_agreed_on_is_left_out(offer: bytes) -> None:
    agreed = agree([KEY, (b"sec-websocket-extensions", offer)], None)
    assert not agreed.extensions
    assert b"sec-websocket-extensions" not in dict(agreed.headers)


def test_the_answer_to_a_handshake() -> None:
    both = [(b"sec-websocket-extensions", b"x-other"), (b"sec-websocket-extensions", b"permessage-deflate")]
    agreed = agree([KEY, *both], "chat")
    assert dict(agreed.headers) == {
        b"upgrade": b"websocket",
        b"connection": b"upgrade",
        # RFC 6455, 1.3
        b"sec-websocket-accept": b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"sec-websocket-extensions": b"permessage-deflate; server_max_window_bits=12",
        b"sec-websocket-protocol": b"chat",
    }
    assert len(agreed.extensions) == 1
