"""What `servd start` decided, and where a daemon keeps its files and sockets. Standard library only: every process loads this."""

import contextlib
import os
import stat
from pathlib import Path

from servd.exceptions import StateError
from servd.ground.quick_dataclass import dataclass

DEFAULT_HTTP_HOST = "127.0.0.1"
DEFAULT_HTTP_PORT = 8000
DEFAULT_GRPC_PORT = 9000
DEFAULT_ADMIN_HOST = "127.0.0.1"
DEFAULT_ADMIN_PORT = 52365
DEFAULT_DASHBOARD_PORT = 8265
DEFAULT_FORWARDED_ALLOW_IPS = "127.0.0.1,::1"
DEFAULT_MAX_RETRIES = 3
MAX_SOCKET_PATH_BYTES = 107
SPEAKER = "servd: "
"""Begin of the lines that the daemon says to people."""
TIED_OPTION = "--tied-to="
"""Option of the daemon process, with a descriptor: it ends when that becomes readable."""
OWN_FILES = frozenset({"daemon.lock", "goal.created", "control.sock", "facts.db", "serve"})
"""Names by which a directory is known as a daemon's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one daemon. None = the flag was not given (rest.md section 11: flags win over stored options).

    dashboard_port: where the admin API answers as today's Ray Serve does; None = nowhere.
    believes_forwarded_host: the proxies of `forwarded_allow_ips` say the host too: those that somebody named, not the default.
    grpc_servicers: import paths of functions that say which methods of gRPC there are. grpc_tls_ca: file of what vouches for its
    clients. grpc_reflection: tools may ask for its services.
    """

    state_dir: str
    socket_dir: str
    http_host: str | None = None
    http_port: int | None = None
    http_location: str | None = None
    open_http: bool = True
    proxies: int = 1
    admin_host: str = DEFAULT_ADMIN_HOST
    admin_port: int = DEFAULT_ADMIN_PORT
    admin_allowed_hosts: tuple[str, ...] = ()
    admin_token_file: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    metrics_port: int | None = None
    admin_tls_cert: str | None = None
    admin_tls_key: str | None = None
    http_tls_cert: str | None = None
    http_tls_key: str | None = None
    start_dir: str = ""
    python_path: str = ""
    dashboard_port: int | None = None
    forwarded_allow_ips: str = DEFAULT_FORWARDED_ALLOW_IPS
    believes_forwarded_host: bool = False
    grpc_port: int | None = None
    grpc_servicers: tuple[str, ...] = ()
    grpc_tls_ca: str | None = None
    grpc_reflection: bool | None = None

    @property
    def log_dir(self) -> str:
        """Root of the log files."""
        return str(Path(self.state_dir) / "logs")

    @property
    def page_url(self) -> str:
        """The live page, for a browser on this host. The port must be the real one."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.admin_host, self.admin_host)
        return f"{url_of(host, self.admin_port, is_tls=self.admin_tls_cert is not None)}/"

    def places(self) -> tuple[str, ...]:
        """Lines for people: where the daemon answers and keeps things. The ports must be the real ones."""
        is_tls = self.admin_tls_cert is not None
        admin = url_of(self.admin_host, self.admin_port, is_tls=is_tls)
        port = self.dashboard_port
        today = () if port is None else (f"as today's Ray Serve: {url_of(self.admin_host, port, is_tls=is_tls)}",)
        return (
            f"admin API: {admin} and unix://{admin_socket(self.socket_dir)}",
            f"live page: {self.page_url}",
            *today,
            f"state: {self.state_dir}",
            f"logs: {self.log_dir}",
        )

    def http_place(self, host: str, port: int) -> str:
        """The line for people that says where the data plane is."""
        return f"HTTP: {url_of(host, port, is_tls=self.http_tls_cert is not None)}"


def variable(name: str, default: str) -> str:
    """Value of an environment variable of servd.

    Args:
        name: the name without prefix, e.g. "HTTP_REQUEST_MAX_RETRIES". `SERVD_<name>` wins; `RAY_SERVE_<name>`,
            `SERVE_<name>` and the bare name are aliases, in this order.
    """
    for key in (f"SERVD_{name}", f"RAY_SERVE_{name}", f"SERVE_{name}", name):
        value = os.environ.get(key)
        if value is not None:
            return value
    return default


def max_retries_setting() -> int:
    """Retries of an accepted request after its replica died.

    Raises:
        ValueError: the environment variable is negative or no number.
    """
    retries = int(variable("HTTP_REQUEST_MAX_RETRIES", str(DEFAULT_MAX_RETRIES)))
    if retries < 0:
        raise ValueError("SERVD_HTTP_REQUEST_MAX_RETRIES must not be negative")
    return retries


SHOW_TRACEBACKS = "SHOW_TRACEBACKS"
"""Variable that lets clients of the data port see tracebacks; `servd start --show-tracebacks` and `servd run` set it."""
FORK_SERVER_FILE = "fork_server.log"
SLOW_START_S = float(variable("SLOW_STARTUP_WARNING_S", "30.0"))
"""A replica, or a template that constructs an instance, that takes longer to start is told of."""


def is_on(name: str, default: str = "0") -> bool:
    """Whether a variable of servd switches something on."""
    return variable(name, default).lower() in ("1", "true", "yes")


def url_of(host: str, port: int, *, is_tls: bool = False) -> str:
    """Base URL of an address that is listened on."""
    return f"http{'s' if is_tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def default_state_dir() -> str:
    """`SERVD_STATE_DIR`, else `$XDG_STATE_HOME/servd`, else `~/.local/state/servd`; absolute.

    Raises:
        StateError: there is none, for nothing says where this user is at home.
    """
    given = os.environ.get("SERVD_STATE_DIR")
    if given:
        return str(Path(given).absolute())
    try:
        home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    except RuntimeError:
        raise StateError(
            f"nothing says where uid {os.getuid()} is at home, neither HOME nor the list of users: name a state directory with "
            "--state-dir or SERVD_STATE_DIR"
        ) from None
    return str(Path(home).absolute() / "servd")


def is_default_state_dir(state_dir: str) -> bool:
    """Whether it is meant where none is named."""
    try:
        return state_dir == default_state_dir()
    except StateError:
        return False


def socket_dir_for(state_dir: str) -> str:
    """Directory for the sockets of a daemon that is started here. Nothing is created.

    Raises:
        StateError: there is no place for one.
    """
    # for the one process that starts a daemon: every process loads this module, and this weighs much
    import tempfile

    digest = _digest_of(state_dir)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.getuid():
        return str(Path(runtime) / f"servd-{digest}")
    try:
        return str(Path(tempfile.gettempdir()) / f"servd-{os.getuid()}-{digest}")
    except FileNotFoundError as error:
        raise StateError(
            f"there is no directory for sockets: {error.strerror}. Set XDG_RUNTIME_DIR or TMPDIR to one that takes files"
        ) from error


def _digest_of(state_dir: str) -> str:
    # for few processes, as above
    import hashlib

    return hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:12]


def socket_dir_file(state_dir: str) -> str:
    """Path of the file in which a daemon says in its state directory where its sockets are."""
    return f"{state_dir}/socket_dir"


def socket_dir_of(state_dir: str) -> str:
    """Directory of the sockets of the daemon that runs on a state directory: where it says that they are, else where one that is
    started here would have them. Its environment may have been another one, or the temporary directory has filled since.

    Raises:
        StateError: see `socket_dir_for`.
    """
    with contextlib.suppress(OSError, ValueError):
        told = Path(socket_dir_file(state_dir)).read_text().strip()
        # in a copy of a state directory it is that of another daemon
        if told.endswith(f"-{_digest_of(state_dir)}") and os.path.lexists(admin_socket(told)):
            return told
    return socket_dir_for(state_dir)


def make_private_dir(path: str, *, with_parents: bool = True) -> None:
    """Create `path` with mode 0700, or check that it is such a directory of this user.

    Args:
        with_parents: create those as well; not for what lies in a state directory, which must be seen to be gone if it is.

    Raises:
        StateError: it is a link or no directory, belongs to somebody else, cannot be created, or others may enter it and it
            holds files that are not a daemon's: closing somebody's folder is not ours to do.
    """
    try:
        if with_parents:
            os.makedirs(path, mode=0o700, exist_ok=True)
        elif not os.path.isdir(path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, mode=0o700)
        status = os.lstat(path)
    except OSError as error:
        raise StateError(f"cannot use directory {path}: {error.strerror}") from error
    if stat.S_ISLNK(status.st_mode):
        raise StateError(f"{path} is a link, which another user may turn: name the directory, {os.path.realpath(path)}")
    if not stat.S_ISDIR(status.st_mode):
        raise StateError(f"{path} is not a directory")
    if status.st_uid != os.getuid():
        raise StateError(f"directory {path} belongs to uid {status.st_uid}, not to you (uid {os.getuid()})")
    if stat.S_IMODE(status.st_mode) != 0o700:
        names = os.listdir(path)
        if names and not OWN_FILES.intersection(names):
            raise StateError(
                f"directory {path} is open to others (mode {stat.S_IMODE(status.st_mode):o}) and holds other files; "
                f"choose a directory of its own, or close this one: chmod 700 {path}"
            )
        os.chmod(path, 0o700)


def is_private_dir(path: str) -> bool:
    """Whether there is such a directory, this user's and closed to others: where to bind a socket anew."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def work_dir(state_dir: str) -> str:
    """Directory of the applications' own copies of their code; one directory in it per fork server, by its id."""
    return f"{state_dir}/work"


def control_socket(socket_dir: str) -> str:
    """Path of the control endpoint, bound by the controller."""
    return f"{socket_dir}/control.sock"


def admin_socket(socket_dir: str) -> str:
    """Path of the admin API's Unix socket."""
    return f"{socket_dir}/admin.sock"


def fork_server_log(log_dir: str) -> str:
    """Path of the log file that all fork servers share."""
    return f"{log_dir}/serve/{FORK_SERVER_FILE}"


def fork_server_socket(socket_dir: str, fork_server_id: str) -> str:
    """Path of a fork server's endpoint."""
    return f"{socket_dir}/f-{fork_server_id}.sock"


def fork_server_sockets(socket_dir: str) -> list[str]:
    """Paths of all fork servers' endpoints that lie there."""
    return _lying_in(socket_dir, "f-")


def replica_files(socket_dir: str) -> list[str]:
    """Paths of all that replicas have made there: each begins with the path of its address."""
    return _lying_in(socket_dir, "r-")


def _lying_in(directory: str, begin: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory) if name.startswith(begin)]
    except OSError:
        return []


def replica_address(socket_dir: str, name: str) -> str:
    """ZeroMQ address of a replica; `name` is unique for ever (the plan takes 12 hex digits of its actor id)."""
    return f"ipc://{socket_dir}/r-{name}"
