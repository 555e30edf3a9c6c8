import pytest

from servd.wire.http_answers import Framing, check_final, framing, has_content

CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("method", "status", "version", "declared", "body_bytes", "expected"),
    [
        ("GET", 200, "1.1", None, 3, Framing(b"content-length: 3\r\n", 3)),
        ("GET", 200, "1.1", b"9", 3, Framing(b"content-length: 3\r\n", 3)),
        ("GET", 200, "1.1", b"9", None, Framing(b"content-length: 9\r\n", 9)),
        ("GET", 200, "1.1", None, None, Framing(CHUNKED, None, is_chunked=True)),
        ("GET", 200, "1.1", b"x", None, Framing(CHUNKED, None, is_chunked=True)),
        ("GET", 200, "1.0", None, None, Framing(b"", None, ends_connection=True)),
        ("GET", 200, "2", None, None, Framing(b"", None)),
        ("HEAD", 200, "1.1", None, 3, Framing(b"content-length: 3\r\n", 0)),
        ("HEAD", 200, "1.1", b"9", 0, Framing(b"content-length: 9\r\n", 0)),
        ("HEAD", 200, "1.1", None, None, Framing(b"", 0)),
        ("HEAD", 200, "1.0", None, None, Framing(b"", 0)),
        ("HEAD", 204, "1.1", b"9", 3, Framing(b"", 0)),
        ("GET", 204, "1.1", b"9", 3, Framing(b"", 0)),
        ("GET", 204, "2", b"9", None, Framing(b"", 0)),
        ("GET", 205, "1.1", b"9", 3, Framing(b"content-length: 0\r\n", 0)),
        ("POST", 205, "1.0", None, None, Framing(b"content-length: 0\r\n", 0)),
        ("HEAD", 304, "2", b"9", None, Framing(b"", 0)),
        ("GET", 304, "1.1", None, 3, Framing(b"", 0)),
        ("GET", 103, "1.1", b"9", 3, Framing(b"", 0)),
        ("GET", 599, "1.1", None, 0, Framing(b"content-length: 0\r\n", 0)),
    ],
)
def test_framing(
    method: str, status: int, version: str, declared: bytes | None, body_bytes: int | None, expected: Framing
) -> None:
    before, after = b"x-content-length: 5\r\n", b"x-after: 1\r\n"
    given = b"" if declared is None else b"content-length: " + declared + b"\r\n"
    found = framing(method, status, version, before + given + after, body_bytes)
    assert found == expected._replace(block=before + after + expected.block)
    assert (found.content_bytes == 0 and not found.ends_connection) or has_content(method, status)


def test_a_length_stands_once_however_often_it_was_given() -> None:
    block = b"content-length: 3\r\ncontent-length: 4\r\n"
    assert framing("GET", 200, "1.1", block, None).block == b"content-length: 3\r\n"


@pytest.mark.parametrize("status", [0, 100, 101, 103, 199, 1000, -200])
def test_statuses_that_end_no_request(status: int) -> None:
    with pytest.raises(ValueError, match=f"cannot have the status {status}: give one from 200 on"):
        check_final(status)
