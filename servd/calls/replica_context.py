"""The replica that running code is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from servd.exceptions import ServdError
from servd.ground.ids import ReplicaID, ReplicaRank
from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import variable


@dataclass(frozen=True, slots=True)
class ProcessIds:
    """Ids of a replica's process, as the admin API shows them; "" where it has none (local mode)."""

    node_id: str = ""
    actor_id: str = ""
    worker_id: str = ""


@dataclass(slots=True)
class ReplicaContext:
    """Who this replica is.

    servable_object: the user's instance or function, None while constructing. rank: among the replicas of the deployment.
    world_size: how many of them are wanted.
    """

    replica_id: ReplicaID
    servable_object: Any = None
    rank: ReplicaRank = ReplicaRank(0)
    world_size: int = 1
    process: ProcessIds = ProcessIds()
    _internal_controller_name: str = "SERVE_CONTROLLER"

    @property
    def app_name(self) -> str:
        """Name of the application."""
        return self.replica_id.deployment.app

    @property
    def deployment(self) -> str:
        """Name of the deployment; with `SERVD_LEGACY_HANDLES=1` the full one, `<app>_<name>`, as before 2.7."""
        return self.replica_id.deployment.full_name if _is_of_old() else self.replica_id.deployment.name

    @property
    def replica_tag(self) -> str:
        """The six letters that tell it from others; with `SERVD_LEGACY_HANDLES=1` `<full name>#<6 letters>`, as before 2.7."""
        return str(self.replica_id) if _is_of_old() else self.replica_id.unique_id


def _is_of_old() -> bool:
    return variable("LEGACY_HANDLES", "0") == "1"


_replica: ReplicaContext | None = None
_template_of = ""
local_replica: ContextVar[ReplicaContext | None] = ContextVar("servd_local_replica", default=None)
"""The replica of the current task, where one process plays several (local mode)."""
_local_template: ContextVar[str] = ContextVar("servd_local_template", default="")


def set_replica_context(context: ReplicaContext | None) -> None:
    """Make this process a replica (once, at its start); None takes it back (tests, local mode)."""
    global _replica
    _replica = context


def set_template_of(deployment: str) -> None:
    """Say that this process constructs the instance from which all replicas of a deployment are forked."""
    global _template_of
    _template_of = deployment


@contextmanager
def playing_template_of(deployment: str) -> Iterator[None]:
    """Within it the current task constructs the instance of a preloaded deployment, and is no replica (local mode)."""
    replica, template = local_replica.set(None), _local_template.set(deployment)
    try:
        yield
    finally:
        _local_template.reset(template)
        local_replica.reset(replica)


def refuse_in_template(what: str) -> None:
    """Raise a ServdError if the running constructor is that of a preloaded deployment. what: was tried in it."""
    deployment = _template_of or _local_template.get()
    if deployment and _replica is None:
        raise ServdError(
            f"{what} does not work in the constructor of {deployment}, which has `preload`: it runs once, before there is any "
            "replica; do that in `on_replica_start(self)`, which runs in each"
        )


def replica_context() -> ReplicaContext | None:
    """The replica this code runs in, None outside of replicas."""
    return _replica or local_replica.get()


def get_replica_context() -> ReplicaContext:
    """The replica this code runs in.

    Raises:
        ServdError: not inside a replica, also in a constructor that is preloaded.
    """
    found = replica_context()
    if found is None:
        refuse_in_template("`get_replica_context()`")
        raise ServdError("`get_replica_context()` works only inside a replica: call it in the code of a deployment")
    return found
