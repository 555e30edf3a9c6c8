"""The replica that running code is in."""

from contextvars import ContextVar
from typing import Any

from servd.exceptions import ServdError
from servd.ground.ids import DeploymentID, ReplicaID
from servd.ground.quick_dataclass import dataclass


@dataclass(slots=True)
class ReplicaContext:
    """Who this replica is.

    deployment: full name. servable_object: the user's instance or function, None while constructing.
    """

    deployment: str
    replica_tag: str
    servable_object: Any = None
    app_name: str = ""
    _internal_controller_name: str = "SERVE_CONTROLLER"

    @property
    def replica_id(self) -> ReplicaID:
        """The tag's parts, as later releases have them: `unique_id`, `deployment_id`."""
        full_name, _, suffix = self.replica_tag.rpartition("#")
        name = full_name.removeprefix(f"{self.app_name}_") if self.app_name else full_name
        return ReplicaID(DeploymentID(self.app_name, name), suffix)


_replica: ReplicaContext | None = None
_template_of = ""
local_replica: ContextVar[ReplicaContext | None] = ContextVar("servd_local_replica", default=None)
"""The replica of the current task, where one process plays several (local mode)."""


def set_replica_context(context: ReplicaContext | None) -> None:
    """Make this process a replica (once, at its start); None takes it back (tests, local mode)."""
    global _replica
    _replica = context


def set_template_of(deployment: str) -> None:
    """Say that this process constructs the instance from which all replicas of a deployment are forked."""
    global _template_of
    _template_of = deployment


def refuse_in_template(what: str) -> None:
    """Raise a ServdError if the running constructor is that of a preloaded deployment. what: was tried in it."""
    if _template_of and _replica is None:
        raise ServdError(
            f"{what} does not work in the constructor of {_template_of}, which has `preload`: it runs once, before there is any "
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
