"""`ray.init` and what goes with it: a program's session, which here is the runtime environment of all that it runs."""

import importlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from servd.documents.program_environment import set_program_environment
from servd.ground.descendants import MARK
from servd.ground.settings import default_state_dir

RAY_VERSION = "2.5.1"
"""What `ray.__version__` says: the release whose API came first here."""
NODE_IP = "127.0.0.1"

_has_begun = False


def init(
    *_args: Any, runtime_env: Mapping[str, Any] | None = None, ignore_reinit_error: bool = False, **_kwargs: Any
) -> "Session":
    """Keep the runtime environment for what this program runs until `shutdown`; for the rest, there is no cluster to connect to.

    A second one changes nothing, unless it has an environment and does not say that it may be ignored.

    Raises:
        ValueError: it is no runtime environment.
    """
    global _has_begun
    if not _has_begun or (runtime_env is not None and not ignore_reinit_error):
        set_program_environment(runtime_env)
    _has_begun = True
    return Session()


def shutdown(*_args: Any, **_kwargs: Any) -> None:
    """Forget the runtime environment, and end Serve where this program has started it for itself."""
    global _has_begun
    _has_begun = False
    set_program_environment(None)
    connection = _open_connection()
    client = (
        importlib.import_module("servd.client").find() if connection is not None and connection.owns_daemon else None
    )
    if client is not None:
        client.shutdown()


def is_initialized() -> bool:
    """Whether this program has called `init` or uses Serve; always so in a replica and where an application is built."""
    return _has_begun or bool(os.environ.get(MARK)) or _open_connection() is not None


def get_gpu_ids() -> list[int] | list[str]:
    """GPUs that this process may use: numbers, or names where one of them is no number."""
    context = importlib.import_module("servd.compat.runtime_context").RuntimeContext()
    found: list[str] = context.get_accelerator_ids()["GPU"]
    return [int(name) for name in found] if all(name.isdigit() for name in found) else found


def get_node_ip_address(*_args: Any) -> str:
    """The address of this host, as the admin API shows it."""
    return NODE_IP


class Session(Mapping[str, Any]):
    """What `init` gives. `with` it, `shutdown` comes at the end."""

    python_version = platform.python_version()
    ray_version = RAY_VERSION
    ray_commit = ""

    @property
    def dashboard_url(self) -> str:
        """Host and port of the daemon's page; "" while none runs."""
        found = importlib.import_module("servd.calls.connection").find()
        url = str(found.status()["page_url"]) if found is not None else ""
        return url.partition("://")[2].rstrip("/")

    @property
    def address_info(self) -> dict[str, Any]:
        """Where this program is."""
        context = importlib.import_module("servd.compat.runtime_context").RuntimeContext()
        return {
            "address": NODE_IP,
            "node_ip_address": NODE_IP,
            "node_id": context.get_node_id(),
            "session_dir": default_state_dir(),
            "webui_url": self.dashboard_url,
        }

    def disconnect(self) -> None:
        """As `shutdown`."""
        shutdown()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_error: object) -> None:
        shutdown()

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __len__(self) -> int:
        return len(self.address_info)

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Session(python_version={self.python_version!r})"


def _open_connection() -> Any:
    """This process's connection to a daemon, if it has made one."""
    module = sys.modules.get("servd.calls.connection")
    return None if module is None else module.current()
