"""What the daemon and its controller say to each other on their socket pair, one dataclass each."""

from servd.ground.quick_dataclass import dataclass
from servd.wire.codec import register_message

EXIT_REFUSED = 78
"""Exit code of a controller that cannot serve this state directory; it has said why on stderr."""


@dataclass(frozen=True, slots=True)
class OpenListeners:
    """Controller -> daemon: bind (or hand out again) one reuse-port socket per slot."""

    request_id: int
    host: str
    port: int
    slots: int


@dataclass(frozen=True, slots=True)
class ListenersOpened:
    """Daemon -> controller: sockets travel beside this record in slot order; error: "" or why there are none."""

    request_id: int
    host: str
    port: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Controller -> daemon: close its copies of the sockets of that address."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class SocketsMoved:
    """Daemon -> controller: the Unix sockets were bound anew; the control endpoint and the admin API's travel beside this."""


@dataclass(frozen=True, slots=True)
class OrphanExited:
    """Daemon -> controller: a process that had become the daemon's child is gone."""

    pid: int
    exit_code: int


@dataclass(frozen=True, slots=True)
class StopController:
    """Daemon -> controller: end proxies and replicas gracefully within timeout_s, then exit; the goal stays."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class InstanceServing:
    """Controller -> daemon: the last goal is serving again, or what of it can. status: a line for people."""

    status: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Daemon -> controller: read the token and the certificates again."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Controller -> daemon: done; error: "" or why the old ones stay."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class PrepareUpgrade:
    """Controller -> daemon: remember what it shall become. edition: as `ground.edition` writes it. place: that of its package."""

    edition: str
    place: str


@dataclass(frozen=True, slots=True)
class UpgradePrepared:
    """Daemon -> controller: it can, and waits for the word. A daemon that is too old for it says nothing."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Controller -> daemon: become what was prepared. This controller is ended."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """Daemon -> each controller: it has become `edition`, or has not and is `before`; error: "" or why not."""

    edition: str
    before: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class ControllerUp:
    """Controller -> daemon: it has adopted what lives, and made its first turn."""


register_message(
    OpenListeners,
    ListenersOpened,
    CloseListeners,
    SocketsMoved,
    OrphanExited,
    StopController,
    InstanceServing,
    Reload,
    Reloaded,
    PrepareUpgrade,
    UpgradePrepared,
    Upgrade,
    Upgraded,
    ControllerUp,
)
