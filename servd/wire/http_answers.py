"""What the method, the status and the version of HTTP allow an answer to have. Pure; replicas and every lane ask here."""

import math
import re
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from servd.ground.settings import SHOW_TRACEBACKS, is_on

WITHOUT_CONTENT = frozenset((204, 205, 304))
"""Final statuses whose answers end with their head, whatever the method."""

BLOCKS: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
_KEPT_BLOCKS: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
"""Header blocks by their pairs, of answers that do not end their connection; those in the second keep content-length."""

_MOST_BLOCKS = 512
_LENGTH = b"content-length:"
_CHUNKED = b"transfer-encoding: chunked\r\n"
# that of a group of exceptions has a frame of signs around it
_TRACEBACK = re.compile(r"[ +|]*(?:Exception Group )?Traceback \(most recent call last\)")


REQUEST_ID = b"x-request-id"
"""Header that names a request, in both directions."""
_DROPPED_HEADERS = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"date", REQUEST_ID)
)


STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """First line of an HTTP/1.1 response."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


@lru_cache(maxsize=2)
def own_lines(second: int) -> bytes:
    """`server` and `date` lines of a response of this second since the epoch."""
    return b"server: servd\r\ndate: %s\r\n" % formatdate(second, usegmt=True).encode()


def answer_head(status: int, block: bytes, request_id: bytes, now_s: float) -> bytes:
    """All that comes before the content of an answer of HTTP/1.1 that keeps its connection. now_s: since the epoch."""
    lines = (status_line(status), block, own_lines(int(now_s)), b"x-request-id: ", request_id, b"\r\n\r\n")
    return b"".join(lines)


class Framing(NamedTuple):
    """How an answer is put on its connection.

    block: header lines, those about the length of the content included.
    content_bytes: that follow the head; None = whatever comes, to the last chunk or to the end of the connection or stream.
    is_chunked: the content goes in chunks. ends_connection: the end of the connection is the end of the content.
    """

    block: bytes
    content_bytes: int | None
    is_chunked: bool = False
    ends_connection: bool = False


def retry_after(status: int, seconds: float | None = None) -> bytes | None:
    """Value of `Retry-After`, whole seconds, rounded up; 1 where a 503 does not say, None = no such header."""
    if seconds is None:
        return b"1" if status == 503 else None
    return b"%d" % math.ceil(seconds)


def has_content(method: str, status: int) -> bool:
    """Whether anything may follow the head of this answer."""
    return status >= 200 and status not in WITHOUT_CONTENT and method != "HEAD"


def check_final(status: int) -> None:
    """Refuse a status that ends no request.

    Raises:
        ValueError: 1xx, or no status at all.
    """
    if not 200 <= status <= 999:
        raise ValueError(f"an answer cannot have the status {status}: give one from 200 on")


@lru_cache(maxsize=256)
def framing(method: str, status: int, version: str, block: bytes, body_bytes: int | None) -> Framing:
    """How to send an answer.

    Args:
        version: of HTTP, as the client speaks it: "1.0", "1.1" or "2".
        block: header lines as the application gave them.
        body_bytes: size of the whole body; None = it comes in pieces.

    Source: RFC 9110, 8.6, 9.3.2 and 15; RFC 9112, 6.
    """
    block, declared = _without_length(block)
    if not has_content(method, status):
        length = _length_without_content(status, declared, body_bytes)
        return Framing(block + _length_line(length), 0)
    length = declared if body_bytes is None else body_bytes
    if length is not None:
        return Framing(block + _length_line(length), length)
    if version == "1.1":
        return Framing(block + _CHUNKED, None, is_chunked=True)
    return Framing(block, None, ends_connection=version == "1.0")


def _length_without_content(status: int, declared: int | None, body_bytes: int | None) -> int | None:
    if status < 200 or status in (204, 304):
        # a 304 may have one, but clients were seen that then wait for content
        return None
    if status == 205:
        return 0
    # what a GET would have got: the application knows best
    return declared if declared is not None else body_bytes


def _length_line(length: int | None) -> bytes:
    return b"" if length is None else b"content-length: %d\r\n" % length


def _without_length(block: bytes) -> tuple[bytes, int | None]:
    """Header lines without those of the length, and the length that the first of them gave."""
    if _LENGTH not in block:
        return block, None
    lines = block.splitlines(keepends=True)
    given = [line[len(_LENGTH) :].strip() for line in lines if line.startswith(_LENGTH)]
    length = int(given[0]) if given and given[0].isdigit() else None
    return b"".join(line for line in lines if not line.startswith(_LENGTH)), length


def block_of(headers: tuple[tuple[bytes, bytes], ...], keep_length: bool) -> bytes:
    """Header lines of an answer, as replicas send them: names in lower case, without those that the proxy writes.

    Args:
        keep_length: with the application's own content-length.

    Raises:
        ValueError: a header holds a line break.
    """
    parts = []
    for name, value in headers:
        lower = name.lower()
        if lower not in _DROPPED_HEADERS or (keep_length and lower == b"content-length"):
            parts.append(lower + b": " + value + b"\r\n")
    block = b"".join(parts)
    if block.count(b"\n") != len(parts) or block.count(b"\r") != len(parts):
        raise ValueError("a response header holds a line break")
    return block


def block_for(headers: Iterable[tuple[bytes, bytes]], keep_length: bool) -> tuple[bytes, bool]:
    """Header lines as `block_of` words them, and whether the connection ends after them; remembered where it does not.

    Raises:
        ValueError: a header holds a line break.
    """
    pairs = tuple(headers)
    known = _KEPT_BLOCKS if keep_length else BLOCKS
    try:
        block = known.get(pairs)
    except TypeError:
        # pairs may be lists
        pairs = tuple((bytes(name), bytes(value)) for name, value in pairs)
        block = None
    if block is not None:
        return block, False
    block = block_of(pairs, keep_length)
    if len(known) >= _MOST_BLOCKS:
        known.clear()
    closes = ends_connection(pairs)
    if not closes:
        known[pairs] = block
    return block, closes


def ends_connection(headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether the application wants the connection closed after this answer."""
    return any(
        name.lower() == b"connection" and b"close" in value.lower().replace(b" ", b"").split(b",")
        for name, value in headers
    )


def text_for_clients(text: str) -> str:
    """What clients of the data port get of a text for operators: no traceback, unless `SERVD_SHOW_TRACEBACKS` asks for it."""
    if is_on(SHOW_TRACEBACKS):
        return text
    return _TRACEBACK.split(text, 1)[0].rstrip(" :\n")
