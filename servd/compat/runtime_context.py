"""`ray.get_runtime_context()`: who this process is, by the ids that the admin API shows."""

import importlib
import os
from typing import NoReturn

from servd.calls.replica_context import replica_context
from servd.exceptions import ServdError
from servd.ground.ids import node_id_of, random_hex
from servd.ground.settings import default_state_dir

_JOB_ID = "01000000"
_driver_id = ""


class RuntimeContext:
    """Ids of this process. In a replica they are those that `GET /api/serve/applications/` has for it."""

    namespace = "serve"
    was_current_actor_reconstructed = False

    def get_node_id(self) -> str:
        """Id of the node, which is the daemon's state directory."""
        replica = replica_context()
        if replica is not None and replica.process.node_id:
            return replica.process.node_id
        # only drivers load what it takes to ask the daemon
        found = importlib.import_module("servd.calls.connection").find()
        status = found.status() if found is not None else {}
        if status.get("running"):
            return str(status["controller_info"]["node_id"])
        return node_id_of(default_state_dir())

    def get_worker_id(self) -> str:
        """Id of the process."""
        replica = replica_context()
        return (replica.process.worker_id if replica is not None else "") or _id_of_driver()

    def get_actor_id(self) -> str | None:
        """Id of the replica, None outside of replicas."""
        replica = replica_context()
        return (replica.process.actor_id if replica is not None else "") or None

    def get_actor_name(self) -> str | None:
        """Name of the replica, None outside of replicas."""
        replica = replica_context()
        return replica.replica_id.to_full_id_str() if replica is not None else None

    def get_job_id(self) -> str:
        """The same for all: there are no jobs."""
        return _JOB_ID

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """GPUs that this process may use: what `num_gpus` reserved for it, or what its environment names."""
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return {"GPU": [item.strip() for item in named.split(",") if item.strip()]}

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        known = ", ".join(item for item in dir(type(self)) if not item.startswith("_"))
        raise ServdError(
            f"servd's runtime context has no {name}; it has {known}. See also `servd.get_replica_context()`"
        )


def _id_of_driver() -> str:
    global _driver_id
    if not _driver_id:
        _driver_id = random_hex(56)
    return _driver_id
