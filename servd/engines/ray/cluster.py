"""The head of a Ray cluster over HTTP: documents, packages, what runs. Blocking, standard library only."""

import http.client
import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from servd.daemon.admin_client import RefusedError, UnreachableError, check_address
from servd.exceptions import ConfigError

ADDRESS_VARIABLES = ("SERVD_ADDRESS", "RAY_DASHBOARD_ADDRESS")
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_FILE = "~/.ray/auth_token"
_APPLICATIONS = "/api/serve/applications/"
_SLOW_S = 300.0


class NoClusterError(UnreachableError):
    """Nothing answers at the address."""

    def __str__(self) -> str:
        return (
            f"failed to connect to a Ray cluster at {self.address}: {self.reason} "
            "(the head's dashboard port, 8265 unless it was started with another)"
        )


class SlowClusterError(NoClusterError):
    """It takes longer than one waits, as where it starts many processes."""


class ClusterRefusedError(RefusedError):
    """The head answered something else than 200."""

    def __str__(self) -> str:
        return f"the Ray cluster answered {self.status}: {self.text}"


def cluster_address(given: str | None) -> str:
    """Where the head is: what is given, else the first of the variables that is set.

    Raises:
        ConfigError: neither, or no http(s) address.
    """
    found = given or next(filter(None, (os.environ.get(name) for name in ADDRESS_VARIABLES)), None)
    if not found:
        raise ConfigError("say which Ray cluster: -a http://HEAD:8265, or SERVD_ADDRESS")
    address = check_address(found)
    if address.startswith("unix:"):
        raise ConfigError(f"address {address!r} is a daemon of servd; a Ray cluster has the form http://HEAD:8265")
    return address


def find_token() -> tuple[str, str]:
    """The token as Ray's own clients find it, and where it was found; "" and "" without one.

    Raises:
        ConfigError: the file that was named cannot be read.
    """
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token, TOKEN_VARIABLE
    named = os.environ.get(TOKEN_FILE_VARIABLE)
    path = Path(named or TOKEN_FILE).expanduser()
    try:
        return path.read_text("ascii").strip(), str(path)
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise ConfigError(f"cannot read {TOKEN_FILE_VARIABLE}={named}: {error}") from error
        return "", ""


class Cluster:
    """What is asked of the head. Each call uses a connection of its own. timeout_s: for an answer, but to what takes long.

    All raise NoClusterError, as a SlowClusterError where only the answer is missing, and ClusterRefusedError.
    """

    def __init__(self, address: str, timeout_s: float = 30.0) -> None:
        self.address = address
        self._timeout_s = timeout_s

    def details(self) -> dict[str, Any]:
        """What runs there: `applications`, `proxies`, `http_options`, ..."""
        return dict(json.loads(self._request("GET", _APPLICATIONS)))

    def put(self, document: dict[str, Any]) -> None:
        """Make this document of today's the goal; applications that it does not name are removed."""
        self._request("PUT", _APPLICATIONS, json.dumps(document, allow_nan=False).encode(), timeout_s=_SLOW_S)

    def shut_down(self) -> None:
        """Remove all applications, and Serve with them."""
        self._request("DELETE", _APPLICATIONS, timeout_s=_SLOW_S)

    def has_package(self, name: str) -> bool:
        """Whether the package is there; if so it stays for ten minutes, used or not."""
        try:
            self._request("GET", _package(name))
        except ClusterRefusedError as error:
            if error.status != 404:
                raise
            return False
        return True

    def upload(self, name: str, data: bytes) -> None:
        """Keep a package under a name."""
        self._request("PUT", _package(name), data, timeout_s=_SLOW_S)

    def _request(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None) -> str:
        token, where = find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            headers["Content-Type"] = "application/json" if path == _APPLICATIONS else "application/zip"
        connection = self._connection(timeout_s or self._timeout_s)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except TimeoutError as error:
            raise SlowClusterError(self.address, "no answer in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoClusterError(self.address, str(error) or repr(error)) from error
        finally:
            connection.close()
        if response.status == 200:
            return text
        raise ClusterRefusedError(response.status, _explained(response.status, text.strip(), where))

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        try:
            if parts.scheme == "https":
                context = ssl.create_default_context()
                return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout_s, context=context)
            return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        except ValueError as error:
            raise ConfigError(f"address {self.address!r} is malformed: {error}") from error


def _package(name: str) -> str:
    return f"/api/packages/gcs/{quote(name, safe='')}"


def _explained(status: int, text: str, where: str) -> str:
    if status == 401:
        places = f"{TOKEN_VARIABLE}, {TOKEN_FILE_VARIABLE} or {TOKEN_FILE}"
        return (
            f"it wants a token, and none was found in {places}"
            if not where
            else f"it takes no token like that of {where}"
        )
    if status == 403:
        return f"it refuses the token of {where}" if where else text
    return text
