"""Whose `X-Forwarded-*` and `Forwarded` headers count, and what they say."""

import pytest

from servd.commands.cli_options import believed
from servd.proxy.forwarded_for import NOTHING_SAID, Said, TrustedProxies, elements, joined, scheme_for, with_host


@pytest.mark.parametrize(
    ("trusted", "host", "expected"),
    [
        ("127.0.0.1,::1", "127.0.0.1", True),
        ("127.0.0.1,::1", "::1", True),
        ("127.0.0.1,::1", "::ffff:127.0.0.1", True),
        ("127.0.0.1,::1", "10.0.0.1", False),
        ("10.0.0.0/8, 192.168.1.7", "10.255.0.1", True),
        ("10.0.0.0/8, 192.168.1.7", "192.168.1.7", True),
        ("10.0.0.0/8, 192.168.1.7", "192.168.1.8", False),
        ("fd00::/8", "fd12::1", True),
        ("*", "198.51.100.7", True),
        ("*", "unknown", True),
        ("", "127.0.0.1", False),
        ("10.0.0.0/8", "unknown", False),
    ],
)
def test_who_is_trusted(trusted: str, host: str, expected: bool) -> None:
    proxies = TrustedProxies(trusted)
    assert (host in proxies) is expected
    assert proxies.trusts((host, 1)) is expected


def test_who_came_by_no_network_is_trusted_where_everybody_is() -> None:
    assert TrustedProxies("*").trusts(None)
    assert not TrustedProxies("127.0.0.1").trusts(None)


@pytest.mark.parametrize("text", ["localhost", "10.0.0.1/8", "300.1.1.1", "127.0.0.1,x"])
def test_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no address and no network"):
        TrustedProxies(text)


@pytest.mark.parametrize(
    ("trusted", "headers", "expected"),
    [
        ("127.0.0.1", {}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4"}, Said(("1.2.3.4", 0))),
        ("127.0.0.1", {"x-forwarded-for": "6.6.6.6, 1.2.3.4"}, Said(("1.2.3.4", 0))),
        ("127.0.0.1,10.0.0.0/8", {"x-forwarded-for": "6.6.6.6, 1.2.3.4, 10.0.0.9"}, Said(("1.2.3.4", 0))),
        ("127.0.0.1,10.0.0.0/8", {"x-forwarded-for": "10.0.0.8, 10.0.0.9"}, Said(("10.0.0.8", 0))),
        ("*", {"x-forwarded-for": "6.6.6.6, 1.2.3.4"}, Said(("6.6.6.6", 0))),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4:5678"}, Said(("1.2.3.4", 0))),
        ("127.0.0.1", {"x-forwarded-for": "[2001:db8::1]:99"}, Said(("2001:db8::1", 0))),
        ("127.0.0.1", {"x-forwarded-for": "2001:db8::1"}, Said(("2001:db8::1", 0))),
        ("127.0.0.1", {"x-forwarded-for": " , "}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-proto": "HTTPS"}, Said(scheme="https")),
        ("127.0.0.1", {"x-forwarded-proto": "https, http"}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-proto": "gopher"}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-host": "shop.example"}, Said(host=b"shop.example")),
        ("127.0.0.1", {"x-forwarded-host": "evil.example, shop.example"}, Said(host=b"shop.example")),
        # who sets the one kind lets the other through as its client wrote it
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4", "forwarded": "for=6.6.6.6;host=evil"}, Said(("1.2.3.4", 0))),
        ("127.0.0.1", {"forwarded": "for=1.2.3.4;proto=https;host=shop.example"}, Said(("1.2.3.4", 0), "https", b"shop.example")),
        ("127.0.0.1", {"forwarded": "for=6.6.6.6;host=evil, for=1.2.3.4;proto=https"}, Said(("1.2.3.4", 0), "https")),
        ("127.0.0.1,10.0.0.0/8", {"forwarded": "for=1.2.3.4;proto=https,for=10.0.0.9"}, Said(("1.2.3.4", 0), "https")),
        ("*", {"forwarded": "for=6.6.6.6, for=1.2.3.4"}, Said(("6.6.6.6", 0))),
        ("127.0.0.1", {"forwarded": 'For="[2001:db8::1]:99"; PROTO=HTTPS'}, Said(("2001:db8::1", 0), "https")),
        ("127.0.0.1", {"forwarded": "for=unknown;proto=https"}, Said(None, "https")),
        ("127.0.0.1", {"forwarded": "for=_hidden"}, Said(("_hidden", 0))),
        ("127.0.0.1", {"x-forwarded-for": "unknown"}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-for": "6.6.6.6, unknown"}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4 shop_Fruit#x"}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-for": "fe80::1%eth0"}, Said(("fe80::1%eth0", 0))),
        ("127.0.0.1", {"x-forwarded-for": "a" * 64}, Said(("a" * 64, 0))),
        ("127.0.0.1", {"x-forwarded-for": "a" * 65}, NOTHING_SAID),
        ("*", {"x-forwarded-for": "a" * 65}, NOTHING_SAID),
        ("*", {"x-forwarded-for": "caf\u00e9"}, NOTHING_SAID),
        ("127.0.0.1", {"x-forwarded-for": "6.6.6.6," + "127.0.0.1," * 100}, Said(("127.0.0.1", 0))),
        ("127.0.0.1", {"x-forwarded-for": "6.6.6.6," * 5000 + "1.2.3.4"}, Said(("1.2.3.4", 0))),
        ("*", {"x-forwarded-for": "1.2.3.4" + ",6.6.6.6" * 5000}, Said(("1.2.3.4", 0))),
        ("127.0.0.1", {"forwarded": 'for="1.2.3.4 x";proto=https'}, Said(None, "https")),
        ("127.0.0.1", {"forwarded": "for=" + "a" * 65}, NOTHING_SAID),
        ("127.0.0.1", {"forwarded": "for=1.2.3.4;x=" + "y" * 4082}, Said(("1.2.3.4", 0))),
        ("127.0.0.1", {"forwarded": "for=1.2.3.4;x=" + "y" * 4083}, NOTHING_SAID),
        ("127.0.0.1", {"forwarded": ""}, NOTHING_SAID),
        ("127.0.0.1", {"forwarded": ";;,=,\"" }, NOTHING_SAID),
    ],
)  # fmt: skip
def test_what_a_trusted_proxy_says(trusted: str, headers: dict[str, str], expected: Said) -> None:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    assert TrustedProxies(trusted).said(raw) == expected


@pytest.mark.parametrize(
    "headers",
    [{"x-forwarded-for": "1.2.3.4", "x-forwarded-host": "evil"}, {"forwarded": "for=1.2.3.4;host=evil"}],
)
def test_the_host_is_left_to_proxies_that_are_said_to_set_it(headers: dict[str, str]) -> None:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    assert TrustedProxies("127.0.0.1", believes_host=False).said(raw) == Said(("1.2.3.4", 0))
    assert TrustedProxies("127.0.0.1").said(raw) == Said(("1.2.3.4", 0), host=b"evil")


def test_the_option_says_that_they_do_whatever_it_names() -> None:
    assert believed(None) == {"forwarded_allow_ips": "127.0.0.1,::1", "believes_forwarded_host": False}
    assert believed("127.0.0.1,::1") == {"forwarded_allow_ips": "127.0.0.1,::1", "believes_forwarded_host": True}
    assert believed("") == {"forwarded_allow_ips": "", "believes_forwarded_host": True}


def test_a_host_stands_in_quotes_with_commas() -> None:
    assert elements('for=a;by="x,\\"y;z", for=b') == [{"for": "a", "by": 'x,"y;z'}, {"for": "b"}]


@pytest.mark.parametrize(
    ("said", "own", "expected"),
    [
        ("", "http", "http"),
        ("", "wss", "wss"),
        ("https", "http", "https"),
        ("https", "ws", "wss"),
        ("wss", "http", "https"),
        ("http", "wss", "ws"),
    ],
)
def test_the_scheme_fits_what_is_asked_for(said: str, own: str, expected: str) -> None:
    assert scheme_for(said, own) == expected


def test_equal_names_are_one_list_and_the_host_is_there_once() -> None:
    headers = [
        (b"x-forwarded-for", b"1.1.1.1"),
        (b"host", b"inner"),
        (b"x-forwarded-for", b"2.2.2.2"),
        (b"accept", b"*/*"),
    ]
    assert joined(headers) == {b"x-forwarded-for": b"1.1.1.1, 2.2.2.2"}
    assert with_host(headers, b"") is headers
    assert [value for name, value in with_host(headers, b"outer") if name == b"host"] == [b"outer"]
