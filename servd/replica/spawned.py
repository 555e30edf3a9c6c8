"""Where a replica enters that is not forked: the application's packages first, then servd's own code."""

from multiprocessing.connection import Connection
from typing import NoReturn

from servd.exceptions import DeployError
from servd.ground import entry, process
from servd.replica.code.environment import Environment, apply_environment
from servd.wire.allocator import keep_freed_memory
from servd.wire.build_messages import BuildOrder
from servd.wire.messages import ReplicaStart

_CODE = "servd.replica.main"


def run_spawned(start: ReplicaStart, order: BuildOrder, lifetime: Connection) -> NoReturn:
    """Be the replica, in a fresh interpreter: environment, import and build are part of its start.

    `env_vars` of the order's runtime environment must hold already. Target of `multiprocessing`, not daemonic.
    """
    process.begin(f"replica {start.replica_id}", start.state_dir, lifetime.fileno())
    process.allow_tracker()
    process.forget_start_method()
    keep_freed_memory()
    environment: Environment | DeployError
    try:
        environment = apply_environment(order, lambda: entry.load(_CODE))
    except DeployError as error:
        # told like any other failure to start, once there is a line to tell it on
        environment = error
    entry.load(_CODE).run_spawned(start, order, environment, lifetime.fileno())
    raise AssertionError("a replica ends its process")
