import pytest

from servd.calls.routes.table import RouteTable, decoded_path
from servd.wire.messages import Route


def a_table(*prefixes: str, root_path: str = "") -> RouteTable:
    table = RouteTable(root_path)
    table.update((Route(prefix, f"app_{prefix}", "app") for prefix in prefixes), 1)
    return table


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a", "/a"),
        (b"/a/", "/a"),
        (b"/a/x", "/a"),
        (b"/a/b", "/a/b"),
        (b"/a/b/c", "/a/b"),
        (b"/a/bc", "/a"),
        (b"/ab", None),
        (b"/", None),
        (b"/%61/x", "/a"),
        (b"*", None),
    ],
)
def test_longest_prefix_wins(path: bytes, expected: str | None) -> None:
    table = a_table("/a", "/a/b")
    for _ in range(2):
        route = table.match(path)
        assert (route and route.prefix) == expected


def test_root_matches_everything() -> None:
    table = a_table("/", "/a")
    assert [getattr(table.match(path), "prefix", None) for path in (b"/", b"/x/y", b"/a", b"/ab")] == [
        "/",
        "/",
        "/a",
        "/",
    ]


def test_root_path_is_removed_first() -> None:
    table = a_table("/a", root_path="/root")
    assert table.match(b"/root/a/x") is not None
    assert table.match(b"/a/x") is None
    assert table.match(b"/rootx/a") is None
    assert [table.inner_path(path) for path in ("/root", "/root/x", "/rooty")] == ["/", "/x", None]


def test_update_forgets_what_was_remembered() -> None:
    table = a_table("/a")
    table.match(b"/a")
    table.update((), 2)
    assert table.match(b"/a") is None
    assert table.as_document() == {}


def test_decoded_path() -> None:
    assert decoded_path(b"/a%20b/%C3%A4") == "/a b/ä"
    assert decoded_path(b"/\xff") == "/\ufffd"
