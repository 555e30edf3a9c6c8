"""The admin API over a Unix socket or TCP, for the command line and for Python programs. Blocking, standard library only."""

import http.client
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from servd.exceptions import ConfigError, ServdError, StateError, TransportError
from servd.ground.settings import DEFAULT_ADMIN_PORT, admin_socket, default_state_dir, socket_dir_of

if TYPE_CHECKING:
    import ssl

DEFAULT_ADDRESS = f"http://localhost:{DEFAULT_ADMIN_PORT}"
ADDRESS_VARIABLES = ("SERVD_ADDRESS", "RAY_AGENT_ADDRESS", "RAY_DASHBOARD_ADDRESS")
AUTO = "auto"
"""Address that names none: whichever daemon is found, as Ray's programs say it."""
TOKEN_FILE_VARIABLE = "SERVD_ADMIN_TOKEN_FILE"
CA_FILE_VARIABLE = "SERVD_ADMIN_CA_FILE"
"""Certificate(s) in PEM form that an https: admin address is checked against; the system's if unset."""
REQUEST_TIMEOUT_S = 30.0
PUT_TIMEOUT_S = 75.0
DELETE_TIMEOUT_S = 75.0
UPGRADE_TIMEOUT_S = 120.0
V1_PATH = "/api/serve/deployments/"
V2_PATH = "/api/serve/applications/"
_NOT_THERE = (404, 405, 501)
"""Statuses of programs that do not know the path or the method."""
NO_CONTROLLER = 503
"""The status of an answer while no controller can be started."""


class UnreachableError(TransportError):
    """No daemon answers at the address."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"failed to connect to servd at {self.address}: {self.reason} (is it running? `servd start`)"


class RefusedError(ServdError):
    """The daemon answered something else than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text

    def __str__(self) -> str:
        return f"the daemon answered {self.status}: {self.text}"


class NoServdError(RefusedError):
    """What answers at the address is no servd."""


def check_address(address: str) -> str:
    """The address without trailing slashes.

    Raises:
        ConfigError: it is no http, https or unix URL.
    """
    scheme, mark, rest = address.partition("://")
    if not mark or scheme not in ("http", "https", "unix") or not rest.strip("/"):
        raise ConfigError(f"address {address!r} must have the form http://HOST:PORT, https://HOST:PORT or unix://PATH")
    return address.rstrip("/")


class NoDaemonError(UnreachableError):
    """No daemon answers on a state directory that was named."""

    def __str__(self) -> str:
        return (
            f"no daemon answers on {self.address}: {self.reason} (start one: `servd start --state-dir {self.address}`)"
        )


def named_address(given: str | None = None, state_dir: str | None = None) -> str | None:
    """The address that somebody named: `given`, else the first set variable of `ADDRESS_VARIABLES`; None without one. See `AUTO`.

    Args:
        state_dir: of the command line, None if not given: it beats the variables.

    Raises:
        ConfigError: that address is malformed.
    """
    variables = () if state_dir else (os.environ.get(name) for name in ADDRESS_VARIABLES)
    address = next((address for address in (given, *variables) if address and address != AUTO), None)
    return check_address(address) if address else None


def find_address(given: str | None = None, state_dir: str | None = None) -> str:
    """Address of the daemon: the first that is given.

    Order: `given`, the socket of `state_dir`, the variables of `ADDRESS_VARIABLES`, the socket of `SERVD_STATE_DIR`; if none
    of them is, the socket of the default state directory if a daemon answers there, else `http://localhost:52365`.

    Raises:
        ConfigError: that address is malformed.
        NoDaemonError: a state directory was named, and no daemon answers there. Another daemon is never meant then.
    """
    address = named_address(given, state_dir)
    if address is not None:
        return address
    try:
        folder = str(Path(state_dir).absolute()) if state_dir else default_state_dir()
    except StateError:
        # of a user without a home
        return DEFAULT_ADDRESS
    path = admin_socket(socket_dir_of(folder))
    trouble = _trouble(path)
    if trouble is None:
        return f"unix://{path}"
    if state_dir or os.environ.get("SERVD_STATE_DIR"):
        raise NoDaemonError(folder, trouble)
    return DEFAULT_ADDRESS


def _trouble(path: str) -> str | None:
    """Why nothing answers on a Unix socket; None if something does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(2.0)
            probe.connect(path)
        except FileNotFoundError:
            return "there is no socket"
        except OSError as error:
            return error.strerror or str(error)
    return None


@dataclass(frozen=True, slots=True)
class Answer:
    """One 200. body as text."""

    text: str
    headers: dict[str, str]

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket. path: of the socket; timeout_s: of each step on it."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AdminClient:
    """The verbs of the admin API. Each call uses a connection of its own, so it may be used from several threads.

    All raise UnreachableError and RefusedError.
    """

    def __init__(self, address: str) -> None:
        self.address = check_address(address)

    @property
    def is_unix(self) -> bool:
        """Whether applications can be shipped by value."""
        return self.address.startswith("unix://")

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Answer:
        """One exchange; timeout_s bounds each wait on the socket."""
        connection = self._connection(timeout_s)
        try:
            connection.request(method, _in_own_dialect(path), body, {**self._headers(body), **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
            found = {name.lower(): value for name, value in response.getheaders()}
        except (OSError, http.client.HTTPException) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or repr(error)
            raise UnreachableError(self.address, reason) from error
        finally:
            connection.close()
        if response.status != 200:
            raise RefusedError(response.status, text)
        return Answer(text, found)

    def probe(self) -> dict[str, Any]:
        """Version of what answers.

        Raises:
            NoServdError: it is no servd.
        """
        hint = f"no admin API there: its port is {DEFAULT_ADMIN_PORT} unless --admin-port chose another"
        try:
            answer = self.request("GET", "/api/ray/version")
        except RefusedError as error:
            if error.status not in _NOT_THERE:
                raise
            raise NoServdError(error.status, f"{error.text} ({hint})") from error
        try:
            found: dict[str, Any] = answer.json()
        except ValueError as error:
            raise NoServdError(200, f"{answer.text[:200]} ({hint})") from error
        return found

    def put(self, document: Any, *, multi_app: bool, config_file: str | None = None) -> int:
        """PUT a whole V2 (multi_app) or V1 document; gives the revision. config_file: absolute path of its file, no code."""
        query = f"?config_file={quote(config_file)}" if config_file else ""
        path = V2_PATH if multi_app else V1_PATH
        answer = self.request("PUT", f"{path}{query}", _json(document), timeout_s=PUT_TIMEOUT_S)
        # a daemon of an older version does not say it
        revision: int = (
            int(answer.headers["etag"].strip('"')) if "etag" in answer.headers else self.status()["revision"]
        )
        return revision

    def details(self, *, today: bool = False) -> dict[str, Any]:
        """GET V2. today: as today's Ray Serve answers."""
        found: dict[str, Any] = self.request("GET", V2_PATH + ("?dialect=today" if today else "")).json()
        return found

    def status(self, seen: int | None = None, timeout_s: float = 0.0) -> dict[str, Any]:
        """servd's own status; with `seen` it waits until the version differs from that, at most timeout_s."""
        query = "" if seen is None else f"?seen={seen}&timeout_s={timeout_s:.3f}"
        answer = self.request("GET", f"/api/servd/v1/status{query}", timeout_s=timeout_s + REQUEST_TIMEOUT_S)
        found: dict[str, Any] = answer.json()
        return found

    def delete(self) -> None:
        """Empty the goal; returns when everything is gone."""
        self.request("DELETE", V1_PATH, timeout_s=DELETE_TIMEOUT_S)

    def start(self, options: dict[str, Any]) -> None:
        """Make Serve run. options: `host`, `port`, `root_path`, `proxy_location`, each only if given."""
        self.request("POST", "/api/servd/v1/start", _json(options), timeout_s=PUT_TIMEOUT_S)

    def upgrade(self) -> dict[str, Any]:
        """Become the servd that lies in the daemon's place: `edition`, `before`, and `is_needed`, false if it is that one."""
        return dict(self.request("POST", "/api/servd/v1/upgrade", timeout_s=UPGRADE_TIMEOUT_S).json())

    def put_application(self, name: str, order: dict[str, Any]) -> int:
        """Add or replace one application, `order` as `orders.ApplicationOrder` has it; gives the revision."""
        answer = self.request("PUT", _application_path(name), _json(order), timeout_s=PUT_TIMEOUT_S).json()
        revision: int = answer["revision"]
        return revision

    def delete_application(self, name: str) -> None:
        """Take one application out of the goal; does not wait."""
        self.request("DELETE", _application_path(name))

    def plan(self, document: Any, *, multi_app: bool, config_file: str | None = None) -> dict[str, Any]:
        """What `put` would do; nothing is changed."""
        query = "?dry_run=true" + (f"&config_file={quote(config_file)}" if config_file else "")
        path = V2_PATH if multi_app else V1_PATH
        return dict(self.request("PUT", f"{path}{query}", _json(document), timeout_s=PUT_TIMEOUT_S).json())

    def prune(self, keep: int, *, dry_run: bool) -> dict[str, Any]:
        """Remove code that only revisions before the latest `keep` need; `names` and `freed_bytes` of it."""
        path = f"/api/servd/v1/prune?keep={keep}{'&dry_run=true' if dry_run else ''}"
        return dict(self.request("POST", path, timeout_s=PUT_TIMEOUT_S).json())

    def revisions(self, limit: int) -> dict[str, Any]:
        """The current `revision`, and the latest `revisions`, newest first."""
        return dict(self.request("GET", f"/api/servd/v1/revisions?limit={limit}").json())

    def errors(self, application: str = "", deployment: str = "") -> list[dict[str, Any]]:
        """What applications raised, the latest first; only of these, where they are named."""
        wanted = {"application": application, "deployment": deployment}
        query = urlencode({key: value for key, value in wanted.items() if value})
        return list(self.request("GET", f"/api/servd/v1/errors?{query}").json()["errors"])

    def error(self, error_id: str) -> dict[str, Any]:
        """One of them with its traceback."""
        return dict(self.request("GET", f"/api/servd/v1/errors/{quote(error_id, safe='')}").json())

    def figures(self, application: str = "", deployment: str = "") -> dict[str, Any]:
        """Requests, memory and CPU of deployments and replicas now; only of these, where they are named."""
        wanted = {"application": application, "deployment": deployment}
        query = urlencode({key: value for key, value in wanted.items() if value})
        return dict(self.request("GET", f"/api/servd/v1/figures?{query}").json())

    def revision(self, number: int) -> dict[str, Any]:
        """One revision with its document."""
        return dict(self.request("GET", f"/api/servd/v1/revisions/{number}").json())

    def rollback(self, number: int, *, revision: int, dry_run: bool = False) -> dict[str, Any]:
        """Go back to a revision if the current one is still `revision`; gives the new one, or the plan of a dry run."""
        path = f"/api/servd/v1/revisions/{number}/rollback{'?dry_run=true' if dry_run else ''}"
        return dict(self.request("POST", path, headers={"If-Match": f'"{revision}"'}, timeout_s=PUT_TIMEOUT_S).json())

    def scale(self, app: str, deployment: str, count: int) -> None:
        """Pin the replica count of a deployment (bare name)."""
        path = f"/api/v1/applications/{quote(app, safe='')}/deployments/{quote(deployment, safe='')}/scale"
        self.request("POST", path, _json({"target_num_replicas": count}))

    def ship(self, digest: str, pickled: bytes) -> None:
        """Keep a pickled application under its SHA-256; over the Unix socket only."""
        self.request("PUT", f"/api/servd/v1/code/{digest}", pickled, timeout_s=600.0)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.is_unix:
            return UnixConnection(self.address.removeprefix("unix://"), timeout_s)
        parts = urlsplit(self.address)
        try:
            if parts.scheme == "https":
                return http.client.HTTPSConnection(
                    parts.hostname or "",
                    parts.port,
                    timeout=timeout_s,
                    context=_trust(os.environ.get(CA_FILE_VARIABLE)),
                )
            return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        except ValueError as error:
            raise ConfigError(f"address {self.address!r} is malformed: {error}") from error

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        token_file = os.environ.get(TOKEN_FILE_VARIABLE)
        if token_file and not self.is_unix:
            try:
                headers["Authorization"] = f"Bearer {Path(token_file).read_text('ascii').strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read {TOKEN_FILE_VARIABLE}={token_file}: {error}") from error
        return headers


def _trust(ca_file: str | None) -> "ssl.SSLContext":
    # here: most calls use the Unix socket, and loading it takes a while
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {CA_FILE_VARIABLE}={ca_file}: {error}") from error


def _application_path(name: str) -> str:
    return f"/api/servd/v1/applications/{quote(name, safe='')}"


def _json(document: Any) -> bytes:
    try:
        return json.dumps(document, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the document has no JSON form: {error}") from error


def _in_own_dialect(path: str) -> str:
    # the address may be that of the port for today's clients
    if not path.startswith(("/api/serve/", "/api/ray/")) or "dialect=" in path:
        return path
    return f"{path}{'&' if '?' in path else '?'}dialect=2.5"
