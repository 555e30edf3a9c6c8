"""Whose word about a request's client counts, and what it says: `X-Forwarded-*` and `Forwarded` headers. Pure."""

import ipaddress
import re
from collections.abc import Mapping

from servd.ground.quick_dataclass import dataclass

HEADERS = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))
"""Names of the headers that say it, in lower case."""

_DE_FACTO = HEADERS - {b"forwarded"}
_MAX_REMEMBERED = 2048
_MAX_HOSTS = 100
_MAX_FORWARDED_BYTES = 4096
_UNKNOWN = "unknown"
# an address, perhaps with a zone, a name, or what RFC 7239 calls an obfuscated identifier
_HOST = re.compile(r"[\w.:%-]{1,64}", re.ASCII)
_SCHEMES = frozenset(("http", "https", "ws", "wss"))

Client = tuple[str, int]
Headers = list[tuple[bytes, bytes]]
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Said:
    """What a proxy in front says of a request. client: host, and 0 for its port; None, "" = it says nothing."""

    client: Client | None = None
    scheme: str = ""
    host: bytes = b""


NOTHING_SAID = Said()


class TrustedProxies:
    """The hosts whose word counts.

    Args:
        text: addresses and networks with commas between; "*" = whoever connects, "" = nobody.
        believes_host: what they say of the host counts too. Most proxies set client and scheme and let `X-Forwarded-Host` through
            as their client wrote it, so that is for those of whom somebody has said that they set it.

    Raises:
        ValueError: one of them is neither.
    """

    def __init__(self, text: str, *, believes_host: bool = True) -> None:
        self._text, self._believes_host = text, believes_host
        words = [word.strip() for word in text.split(",") if word.strip()]
        self._is_everybody = "*" in words
        self._networks = [_network(word) for word in words if word != "*"]
        self._known: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"TrustedProxies({self._text!r})"

    def __contains__(self, host: str) -> bool:
        if self._is_everybody:
            return True
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            address = _address(host)
            known = address is not None and any(address in network for network in self._networks)
            self._known[host] = known
        return known

    def trusts(self, client: Client | None) -> bool:
        """Whether what this end of a connection says counts; None = it came by no network."""
        return self._is_everybody if client is None else client[0] in self

    def said(self, headers: Mapping[bytes, bytes]) -> Said:
        """What the headers of a trusted proxy say. The client is the last listed that is no trusted proxy itself, or the first.

        Args:
            headers: by name in lower case; values of equal names are joined with commas. `Forwarded` counts where there is no
                other: a proxy that knows only the others lets it through as its client wrote it. Any client may have
                written much of it, so it is bounded: of `X-Forwarded-For` the last 100 hosts count (the first 100 where everybody
                is trusted), a `Forwarded` of more than 4 KiB says nothing, and what is not 1 to 64 ASCII letters, digits and
                `_.:%-` is no host: the client is unknown then.
        """
        if any(name in headers for name in _DE_FACTO):
            client = self._client_among(_text(headers, b"x-forwarded-for"))
            scheme = _text(headers, b"x-forwarded-proto").strip().lower()
            host = headers.get(b"x-forwarded-host", b"").rpartition(b",")[2].strip()
            return Said(client, scheme if scheme in _SCHEMES else "", host if self._believes_host else b"")
        text = _text(headers, b"forwarded")
        return self._of_elements(elements(text)) if len(text) <= _MAX_FORWARDED_BYTES else NOTHING_SAID

    def _of_elements(self, found: list[dict[str, str]]) -> Said:
        for number, element in enumerate(reversed(found), 1):
            host = _host_of(element.get("for", ""))
            if number == len(found) or not host or host not in self or self._is_everybody:
                # nobody knows who wrote what stands before
                first = found[0] if self._is_everybody else element
                host = _host_of(first.get("for", ""))
                scheme = first.get("proto", "").lower()
                name = first.get("host", "").encode("latin-1") if self._believes_host else b""
                return Said(_client(host), scheme if scheme in _SCHEMES else "", name)
        return NOTHING_SAID

    def _client_among(self, text: str) -> Client | None:
        if self._is_everybody:
            return _client(next(filter(None, map(_host_of, text.split(",", _MAX_HOSTS)[:_MAX_HOSTS])), ""))
        hosts = [host for word in text.rsplit(",", _MAX_HOSTS)[-_MAX_HOSTS:] if (host := _host_of(word))]
        # one that is unknown ends the search: who wrote what stands before is unknown too
        return _client(next((host for host in reversed(hosts) if host not in self), hosts[0] if hosts else ""))


def joined(headers: Headers) -> dict[bytes, bytes]:
    """Those of the headers that say it, by name; values of equal names with commas between. Names are in lower case."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in HEADERS:
            found[name] = found[name] + b", " + value if name in found else value
    return found


def scheme_for(said: str, own: str) -> str:
    """The scheme of a request's scope. own: what it was without the word of a proxy; of a WebSocket "ws" or "wss"."""
    if not said:
        return own
    is_secure = said in ("https", "wss")
    if own.startswith("ws"):
        return "wss" if is_secure else "ws"
    return "https" if is_secure else "http"


def with_host(headers: Headers, host: bytes) -> Headers:
    """The headers with this as their Host. Names are in lower case."""
    return [(b"host", host), *(pair for pair in headers if pair[0] != b"host")] if host else headers


def elements(text: str) -> list[dict[str, str]]:
    """The elements of a `Forwarded` header, names in lower case; what is malformed is left out. Source: RFC 7239, 4."""
    found: list[dict[str, str]] = []
    for part in _split(text, ","):
        pairs = (pair.partition("=") for pair in _split(part, ";"))
        found.append({name.strip().lower(): _unquoted(value.strip()) for name, sign, value in pairs if sign})
    return [element for element in found if element]


def _split(text: str, sign: str) -> list[str]:
    """Parts between signs that stand in no quotes."""
    parts, begin, quoted, escaped = [], 0, False, False
    for at, letter in enumerate(text):
        if letter == sign and not quoted:
            parts.append(text[begin:at])
            begin = at + 1
            continue
        if letter == '"' and not escaped:
            quoted = not quoted
        escaped = quoted and letter == "\\" and not escaped
    return [*parts, text[begin:]]


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def _host_of(text: str) -> str:
    """Without brackets and port; "" = nothing is there, "unknown" = what is there is no host."""
    text = text.strip()
    if not text:
        return ""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text if _HOST.fullmatch(text) else _UNKNOWN


def _client(host: str) -> Client | None:
    return (host, 0) if host not in ("", _UNKNOWN) else None


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def _network(word: str) -> _Network:
    try:
        return ipaddress.ip_network(word)
    except ValueError as error:
        raise ValueError(f"{word!r} is no address and no network: {error}") from None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    # how a socket for both kinds shows an IPv4 client
    return getattr(found, "ipv4_mapped", None) or found
