"""Two releases' clients send the same requests and each refuses the other's answers: which of the two one is answered as.

What differs is where they go: those of 2.5 to the admin port, today's to the dashboard port. The query parameter `dialect`
decides on any socket.
"""

from enum import StrEnum

from starlette.requests import Request

from servd.exceptions import ConfigError

DIALECT_KEY = "servd.dialect"
"""Where the server puts the `Dialect` of a connection into the ASGI scope."""


class Dialect(StrEnum):
    """A release whose clients are answered; values as in the query parameter."""

    SEED = "2.5"
    TODAY = "today"


def dialect_of(request: Request) -> Dialect:
    """The dialect of the answer to this request.

    Raises:
        ConfigError: the query parameter names none.
    """
    named = request.query_params.get("dialect")
    if named is None:
        return Dialect(request.scope.get(DIALECT_KEY, Dialect.SEED))
    try:
        return Dialect(named)
    except ValueError:
        known = " or ".join(Dialect)
        raise ConfigError(f"query parameter dialect must be {known}, got {named[:80]!r}") from None
