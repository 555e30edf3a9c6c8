"""A Python program's connection to Serve: the admin verbs, and the line that its handles use."""

import atexit
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from servd.calls import connection, pickling
from servd.calls.connection import Connection
from servd.calls.response import DeploymentResponse, settled_ref
from servd.config import HTTPOptions
from servd.daemon.admin_client import AdminClient, RefusedError, UnreachableError
from servd.daemon.launch import TiedDaemon, free_admin_port, start_detached, start_tied
from servd.daemon.state_lock import running_pid
from servd.exceptions import AlreadyRunningError, DeployError, ServdError
from servd.ground.clock import SystemClock, block_for
from servd.ground.ids import DeploymentID, full_name_of
from servd.ground.settings import (
    DEFAULT_ADMIN_PORT,
    Settings,
    admin_socket,
    default_state_dir,
    socket_dir_for,
    url_of,
    variable,
)
from servd.handle import RayServeHandle, RayServeSyncHandle

WAIT_LIMIT_S = 60.0
_POLL_S = 10.0
_START_LIMIT_S, _START_POLL_S = 30.0, 0.05

logger = logging.getLogger(__name__)


class Client:
    """Made by `connect` and `start`, one for each connection.

    Args:
        connection: to the daemon.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.admin = connection.admin
        self.logging_config: dict[str, Any] | None = None
        self.given_root_url = ""
        self._controller = _Controller(self)

    def __repr__(self) -> str:
        return f"Client({self.admin.address}{', closed' if self.is_closed else ''})"

    @property
    def is_closed(self) -> bool:
        """Whether it was shut down."""
        return self.connection.is_closed

    @property
    def root_url(self) -> str:
        """URL under which applications are served: the environment's, `start`'s, else of the HTTP options in force."""
        given = variable("ROOT_URL", "") or self.given_root_url
        http = self.status()["http"]
        return given or url_of(http["host"], http["port"], is_tls=http["tls"]) + http["root_path"]

    @property
    def http_config(self) -> HTTPOptions:
        """HTTP options in force."""
        http = self.status()["http"]
        return HTTPOptions(**{key: http[key] for key in ("host", "port", "root_path", "location")})

    def status(self, seen: int | None = None, timeout_s: float = 0.0) -> dict[str, Any]:
        """The daemon's status as `/api/servd/v1/status` gives it.

        Raises:
            ServdError: after `shutdown`, or the daemon is gone.
        """
        return self.connection.status(seen, timeout_s)

    def watch(self, done: Callable[[dict[str, Any]], bool], limit_s: float | None = None) -> bool:
        """Follow the status until `done` says so; False when the time is over first."""
        clock = SystemClock()
        deadline = None if limit_s is None else clock.now() + limit_s
        status = self.status()
        while not done(status):
            left = _POLL_S if deadline is None else min(_POLL_S, deadline - clock.now())
            if left <= 0:
                return False
            status = self.status(status["version"], left)
        return True

    def open_line(self) -> None:
        """Let the handles of this process reach deployments."""
        self.connection.open_line()

    def deploy(self, application: Any, name: str, order: dict[str, Any]) -> None:
        """Ship an application by value and put it into the goal.

        Args:
            application: the bound Application.
            order: further keys of `orders.ApplicationOrder`.

        Raises:
            ServdError: the daemon refuses it; its text says why.
            TypeError: it cannot be pickled.
        """
        data = pickling.dump_application(application)
        digest = hashlib.sha256(data).hexdigest()
        here = os.getcwd()
        # the first one is where relative paths of the application start
        path = [here, *(os.path.abspath(item) if item else here for item in sys.path)]
        self.status()
        try:
            self.admin.ship(digest, data)
            self.admin.put_application(name, {"application_hash": digest, "driver_path": path, **order})
        except RefusedError as error:
            raise ServdError(error.text) from error

    def check_names(self, app: str, names: Iterable[str]) -> None:
        """Check that no other application has a deployment of the same full name.

        Raises:
            ServdError: names both.
        """
        live = self.live_deployments() if app else {}
        for name in names:
            full = full_name_of(app, name)
            if full in live and live[full][0].app != app:
                other = live[full][0]
                raise ServdError(
                    f"deployment {name!r} of application {app!r} would have the full name {full!r}, "
                    f"which is that of {other.name!r} of application {other.app!r}"
                )

    def start_instance(self, options: dict[str, Any]) -> None:
        """Make Serve run with these options of the data plane and wait until that accepts connections.

        Raises:
            ServdError: refused, or the port cannot be bound. TimeoutError: not ready in 60 s.
        """
        try:
            self.admin.start(options)
        except RefusedError as error:
            raise ServdError(error.text) from error

        def ready(status: dict[str, Any]) -> bool:
            return bool(status["http"]["listening"] or status["http"]["location"] == "NoServer")

        if not self.watch(ready, WAIT_LIMIT_S):
            raise TimeoutError(f"no proxy ready after {WAIT_LIMIT_S:.0f} s")

    def wait_until_healthy(self, name: str) -> None:
        """Wait without limit until all deployments of an application are HEALTHY.

        Raises:
            RuntimeError: it cannot be built, or a deployment is UNHEALTHY; it goes on trying.
        """

        def done(status: dict[str, Any]) -> bool:
            app = status["applications"].get(name)
            if app is None or app["status"] == "DELETING":
                raise RuntimeError(f"application {name!r} was deleted while it was deployed")
            if app["status"] == "DEPLOY_FAILED":
                # they have models of their own, which only those who ask load
                from servd.documents.statuses import why_failed

                raise RuntimeError(f"application {name!r} failed to deploy: {why_failed(app)}")
            return bool(app["status"] == "RUNNING")

        self.watch(done)

    def delete_apps(self, names: Iterable[str], blocking: bool = True) -> None:
        """Delete applications; unknown names are skipped.

        Raises:
            TimeoutError: not gone within 60 s.
        """
        gone = set(names)
        self.status()
        for name in gone:
            self.admin.delete_application(name)
        if blocking and not self.watch(lambda status: not gone & set(status["applications"]), WAIT_LIMIT_S):
            raise TimeoutError(f"applications not gone after {WAIT_LIMIT_S:.0f} s: {', '.join(sorted(gone))}")

    def scale(self, deployment: DeploymentID, count: int) -> None:
        """Pin the replica count of a deployment, without waiting; a ServdError where the daemon refuses it."""
        self.status()
        try:
            self.admin.scale(deployment.app, deployment.name, count)
        except RefusedError as error:
            raise ServdError(error.text) from error

    def deploy_apps(self, config: Any) -> None:
        """Put a V2 document, or a V1 one, in force."""
        document = config.model_dump(exclude_unset=True) if hasattr(config, "model_dump") else config
        self.status()
        try:
            self.admin.put(document, multi_app="applications" in document)
        except RefusedError as error:
            raise ServdError(error.text) from error

    def get_serve_status(self, name: str = "default") -> Any:
        """Status of one application, as `schema.ServeStatus` of release 2.5."""
        from servd.documents.statuses import application_status

        return application_status(name, self.status())

    def get_serve_details(self) -> dict[str, Any]:
        """All that there is to say of the instance, as today's Ray Serve gives it: `applications` by name, `proxies`, ..."""
        self.status()
        return self.admin.details(today=True)

    def get_app_config(self, name: str = "default") -> dict[str, Any] | None:
        """The stored config of an application, None when it has none."""
        self.status()
        app = self.admin.details()["applications"].get(name)
        return None if app is None else app["deployed_app_config"]

    def get_handle(self, deployment_name: str, missing_ok: bool = False, sync: bool = True) -> Any:
        """A legacy handle to a deployment by its full name, or by the name that `Deployment.deploy` gave it.

        Raises:
            KeyError: there is none, and not `missing_ok`.
        """
        found = self.live_deployments()
        alone = full_name_of(deployment_name, deployment_name)
        if deployment_name not in found and alone in found:
            deployment_name = alone
        if deployment_name not in found and not missing_ok:
            raise KeyError(f"deployment {deployment_name!r} does not exist; there are: {', '.join(found) or 'none'}")
        target = found.get(deployment_name, (DeploymentID(deployment_name, ""), {}))[0]
        self.open_line()
        return (RayServeSyncHandle if sync else RayServeHandle)(target)

    def live_deployments(self) -> dict[str, tuple[DeploymentID, dict[str, Any]]]:
        """Full name -> identity and status of every deployment there is."""
        apps = self.status()["applications"]
        return {
            full: (DeploymentID(deployment["name"], app), deployment)
            for app, about in apps.items()
            for full, deployment in about["deployments"].items()
        }

    def shutdown(self) -> None:
        """Delete everything and end this client; a daemon that this process started ends too.

        Raises:
            TimeoutError: deployments are left after 60 s.
        """
        if self.is_closed:
            return
        try:
            self.admin.delete()
        except UnreachableError:
            logger.info("shutdown daemon=gone")
        except RefusedError as error:
            raise TimeoutError(error.text) from error
        else:
            if self.connection.after_shutdown is not None:
                self.connection.after_shutdown()
                return
        self.close()

    def close(self) -> None:
        """End this client and a daemon that this process started; the applications of other daemons stay."""
        self.connection.close()


class _Controller:
    """`client._controller` of release 2.x, as far as applications use it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def get_pid(self) -> "_Controller":
        """`get_pid.remote()` gives the controller's pid."""
        return self

    def remote(self) -> DeploymentResponse:
        """A response that holds the pid."""
        return settled_ref(self._client.status()["controller_info"]["pid"])


_client: Client | None = None
# threads that run applications at once need one daemon
_starting = threading.RLock()


def _client_of(made: Connection) -> Client:
    global _client
    if _client is None or _client.connection is not made:
        _client = Client(made)
    return _client


def find() -> Client | None:
    """This process's client of a daemon that answers; None when there is no daemon."""
    found = connection.find()
    return None if found is None else _client_of(found)


def connect() -> Client:
    """This process's client, ready for handles.

    Raises:
        ServdError: Serve is not running.
    """
    return _client_of(connection.connect())


def find_or_start(*, host: str | None, port: int | None, detached: bool = False) -> Client:
    """This process's client; without a daemon one is started, which ends with this process unless `detached`."""
    with _starting:
        return find() or _starting_elsewhere() or _started(host, port, detached)


def _starting_elsewhere() -> Client | None:
    """The client of a daemon that another program is starting, once it answers; None where there is none."""
    deadline = SystemClock().now() + _START_LIMIT_S
    while running_pid(default_state_dir()) is not None and SystemClock().now() < deadline:
        if (found := find()) is not None:
            return found
        block_for(_START_POLL_S)
    return None


def _started(host: str | None, port: int | None, detached: bool) -> Client:
    state_dir = default_state_dir()
    settings = Settings(
        state_dir=state_dir,
        socket_dir=socket_dir_for(state_dir),
        http_host=host,
        http_port=port,
        admin_port=free_admin_port(),
        # it opens with the first application, or with the options that `start` sends
        open_http=False,
        start_dir=os.getcwd(),
        python_path=os.environ.get("PYTHONPATH", ""),
    )
    try:
        daemon = _start(settings, detached)
    except (AlreadyRunningError, DeployError):
        if (found := _starting_elsewhere()) is not None:
            return found
        if settings.admin_port != DEFAULT_ADMIN_PORT or free_admin_port() == DEFAULT_ADMIN_PORT:
            raise
        # another program has taken it since
        daemon = _start(replace(settings, admin_port=free_admin_port()), detached)
    made = Connection(AdminClient(f"unix://{admin_socket(settings.socket_dir)}"), daemon)
    connection.install(made)
    if daemon is not None:
        atexit.register(made.close)
    return _client_of(made)


def start_own(state_dir: str) -> Client:
    """The client of a daemon that is started for this process alone, and that ends with it or with `close`; its data plane is
    still closed.

    Raises:
        ServdError: this process has one already, or is a replica; or it cannot start.
    """
    connection.leave()
    settings = Settings(
        state_dir=state_dir,
        socket_dir=socket_dir_for(state_dir),
        admin_port=0,
        open_http=False,
        start_dir=os.getcwd(),
        python_path=os.environ.get("PYTHONPATH", ""),
    )
    made = Connection(AdminClient(f"unix://{admin_socket(settings.socket_dir)}"), start_tied(settings))
    connection.install(made)
    atexit.register(made.close)
    return _client_of(made)


def _start(settings: Settings, detached: bool) -> TiedDaemon | None:
    if not detached:
        return start_tied(settings)
    start_detached(settings)
    return None
