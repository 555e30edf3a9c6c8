"""What a browser carries after a login in place of the bearer token: a cookie that the token signs, and that ends. Pure."""

import hmac
from collections.abc import Iterator

COOKIE = "servd_session"
"""Begin of the cookie's name; the port follows, for browsers keep the cookies of all ports of a host together."""
SESSION_S = 12 * 3600
_LONGEST_NUMBER = 12


def new_session(token: str, at: float) -> str:
    """A session from now on. at: wall time, seconds.

    It holds until its time is over, or the daemon has another token.
    """
    until = str(int(at) + SESSION_S)
    return f"{until}.{_mark(token, until)}"


def is_session(token: str, session: str, at: float) -> bool:
    """Whether somebody who knew this token began that session, and it is not over. at: wall time, seconds."""
    until, _, mark = session.partition(".")
    if not (until.isascii() and until.isdigit()) or len(until) > _LONGEST_NUMBER:
        return False
    return hmac.compare_digest(mark.encode(), _mark(token, until).encode()) and at < int(until)


def has_session(token: str, cookies: str, port: int, at: float) -> bool:
    """Whether a `Cookie` header carries such a session that began at this port. at: wall time, seconds."""
    return any(is_session(token, session, at) for session in sessions_in(cookies, port))


def name_of(port: int) -> str:
    """Name of the cookie at a port."""
    return f"{COOKIE}_{port}"


def cookie(port: int, session: str, *, is_tls: bool) -> str:
    """The `Set-Cookie` header of a session; of "": forget it. Scripts cannot read it, and other sites' pages not send it."""
    last_s = SESSION_S if session else 0
    secure = "; Secure" if is_tls else ""
    return f"{name_of(port)}={session}; Path=/; Max-Age={last_s}; HttpOnly; SameSite=Strict{secure}"


def sessions_in(cookies: str, port: int) -> Iterator[str]:
    """Those that a browser sends along to the port."""
    for part in cookies.split(";"):
        name, _, value = part.strip().partition("=")
        if name == name_of(port):
            yield value


def _mark(token: str, until: str) -> str:
    return hmac.new(token.encode(), f"servd page session until {until}".encode(), "sha256").hexdigest()
