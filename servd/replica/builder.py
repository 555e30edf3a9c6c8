"""From an environment that is applied to a built application, and to the replicas that are forked from it.

A fork server loads this once the application's packages can be found: what is imported here looks for them.
"""

import logging

from servd.app.built import BuiltApplication, describe
from servd.ground.settings import variable
from servd.replica.code.environment import Environment
from servd.replica.code.importing import code_version, is_pinned, load_application
from servd.replica.fork_safety import fork_unsafe_reason
from servd.replica.main import run_forked
from servd.wire.messages import BuildOrder, BuildResult

__all__ = ["built_from", "run_forked"]

logger = logging.getLogger(__name__)


def built_from(order: BuildOrder, environment: Environment) -> tuple[BuildResult, BuiltApplication]:
    """Import and flattening.

    Raises:
        DeployError: as `load_application`.
    """
    built = load_application(order, environment)
    version = code_version(order, environment)
    unsafe = fork_unsafe_reason()
    if variable("FORK", "1") == "0":
        unsafe = "SERVD_FORK=0"
    if unsafe:
        logger.warning("replicas_are_spawned app=%s reason=%s", order.app, unsafe)
    result = BuildResult(
        order.build_id,
        code_version=version,
        deployments=describe(built),
        ingress=built.ingress_name,
        route_prefix=built.route_prefix,
        fork_unsafe=unsafe,
        is_pinned=is_pinned(order, environment),
    )
    return result, built
