"""Who may speak to the admin plane: the bearer token or a session, the user behind a loopback connection, the browser's marks."""

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from urllib.parse import urlsplit

from servd.documents.runtime_env import is_loopback
from servd.exceptions import StateError
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import Settings
from servd.rest.peers import Peer, own_uids
from servd.rest.sessions import has_session

_READS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let in: HTTP status and text."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The rules of one daemon. token: "" = none asked for. checks_uid: the TCP port is bound to loopback."""

    bind_host: str
    token: str = field(default="", repr=False)
    allowed_hosts: frozenset[str] = frozenset()
    uids: frozenset[int] = field(default_factory=own_uids)

    @property
    def checks_uid(self) -> bool:
        """Whether the owner of the client's socket matters."""
        return is_loopback(self.bind_host)

    def refusal(
        self,
        peer: Peer,
        headers: Mapping[str, str],
        local_host: str = "",
        *,
        port: int = 0,
        method: str = "GET",
        at: float = 0.0,
    ) -> Refusal | None:
        """Why this request is refused, or None.

        Args:
            peer: who sent it, as found when the connection was accepted.
            headers: by lower-case name.
            local_host, port: address at which the connection was accepted.
            at: wall time, seconds.
        """
        if peer.is_unix:
            return None
        return self._token_refusal(headers, port, method, at) or self.refusal_beside_token(peer, headers, local_host)

    def refusal_beside_token(self, peer: Peer, headers: Mapping[str, str], local_host: str = "") -> Refusal | None:
        """Why this request would be refused with any token, or None: what may be shown to somebody who is about to give one."""
        if peer.is_unix:
            return None
        return (
            self._user_refusal(peer)
            or self._host_refusal(headers.get("host"), local_host)
            or self._origin_refusal(headers)
        )

    def is_token(self, given: str) -> bool:
        """Whether this is the bearer token."""
        return bool(self.token) and hmac.compare_digest(given.strip().encode(), self.token.encode())

    def _token_refusal(self, headers: Mapping[str, str], port: int, method: str, at: float) -> Refusal | None:
        if not self.token:
            return None
        authorization = headers.get("authorization", "")
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given):
            return None
        if not authorization and has_session(self.token, headers.get("cookie", ""), port, at):
            # a browser sends the cookie by itself, also for whoever serves a page on another port of this host
            return None if method in _READS or is_same_origin(headers) else _NOT_FROM_THE_PAGE
        how = "wrong" if authorization else "missing"
        text = f"401: bearer token {how}; send 'Authorization: Bearer <content of the daemon's --admin-token-file>'"
        return Refusal(401, text)

    def _user_refusal(self, peer: Peer) -> Refusal | None:
        if not self.checks_uid or peer.uid in self.uids:
            return None
        who = "unknown user" if peer.uid is None else f"uid {peer.uid}"
        text = (
            f"403: {who} may not use this admin port, only the user who runs the daemon and root; "
            "connect as that user, or start servd on a non-loopback --admin-host with --admin-token-file"
        )
        return Refusal(403, text)

    def _host_refusal(self, host: str | None, local_host: str) -> Refusal | None:
        if host is None:
            return None
        name = _host_name(host)
        if is_loopback(name) or name in self.allowed_hosts or name in {self.bind_host.lower(), local_host}:
            return None
        text = (
            f"403: Host {host!r} is not served; use a loopback address, or start servd with --admin-allowed-host {name}"
        )
        return Refusal(403, text)

    def _origin_refusal(self, headers: Mapping[str, str]) -> Refusal | None:
        if headers.get("sec-fetch-site", "").strip().lower() == "cross-site":
            return Refusal(
                403, "403: cross-site request refused (Sec-Fetch-Site: cross-site); send it from the same site"
            )
        origin = headers.get("origin")
        if origin is None or _netloc(origin) == headers.get("host", "").lower():
            return None
        text = f"403: request from another site refused (Origin: {origin}); send it without Origin, or from this host"
        return Refusal(403, text)


_NOT_FROM_THE_PAGE = Refusal(
    403, "403: a change in a session must come from the page itself (Sec-Fetch-Site: same-origin, or its Origin)"
)


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of this very host and port sent the request."""
    site, origin = headers.get("sec-fetch-site", "").strip().lower(), headers.get("origin")
    if origin is not None and _netloc(origin) != headers.get("host", "").lower():
        return False
    return site == "same-origin" or (not site and origin is not None)


def _netloc(origin: str) -> str:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return "?"
    return parts.netloc.lower() if parts.scheme in ("http", "https") and parts.netloc else "?"


def _host_name(host: str) -> str:
    """Host header without port and brackets, lower case; "?" for nonsense."""
    if set(host) & set("@/?#\\ "):
        return "?"
    try:
        return urlsplit(f"//{host}").hostname or "?"
    except ValueError:
        return "?"


def rules_for(settings: Settings) -> AccessRules:
    """The rules that `servd start` was given.

    Raises:
        StateError: the token file cannot be read or is empty; or a host that is not loopback has no token file.
    """
    token = read_token(settings.admin_token_file) if settings.admin_token_file else ""
    if not token and not is_loopback(settings.admin_host):
        raise StateError(
            f"--admin-host {settings.admin_host} is not a loopback address: it needs --admin-token-file, "
            "because whoever reaches the admin port can run code"
        )
    return AccessRules(settings.admin_host, token, frozenset(_lower(settings.admin_allowed_hosts)))


def read_token(path: str) -> str:
    """The bearer token in a file, without surrounding white space.

    Raises:
        StateError: unreadable, empty, or not ASCII.
    """
    try:
        token = Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read --admin-token-file {path}: {error}") from error
    if not token:
        raise StateError(f"--admin-token-file {path} is empty")
    return token


def _lower(hosts: Iterable[str]) -> Iterable[str]:
    return (host.strip().strip("[]").lower() for host in hosts)
