"""From an environment that is applied to a built application, and to the replicas that are forked from it.

A fork server loads this once the application's packages can be found: what is imported here looks for them.
"""

import faulthandler
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from servd.app.built import BuiltApplication, describe
from servd.calls.replica_context import set_template_of
from servd.exceptions import DeployError
from servd.ground.settings import SLOW_START_S, fork_server_log, variable
from servd.observability.tracebacks import user_traceback
from servd.replica.before_fork import make_ready
from servd.replica.code.environment import Environment
from servd.replica.code.importing import code_version, is_pinned, load_application
from servd.replica.instances import HOOK, new_preloaded
from servd.replica.main import run_forked
from servd.replica.native.fork_safety import fork_unsafe_reason
from servd.replica.native.lost_waits import note_threads
from servd.replica.native.pools import counting_libraries
from servd.wire.build_messages import BuildOrder, BuildResult

__all__ = ["built_from", "run_forked"]

logger = logging.getLogger(__name__)


def built_from(order: BuildOrder, environment: Environment) -> tuple[BuildResult, BuiltApplication, Any]:
    """Import and flattening, and the instance that the order wants to be there before the first fork (else None).

    Raises:
        DeployError: as `load_application`, or the constructor failed.
    """
    built = load_application(order, environment)
    version = code_version(order, environment)
    unsafe = fork_unsafe_reason(hook=HOOK) if order.preload else fork_unsafe_reason()
    if variable("FORK", "1") == "0":
        unsafe = "SERVD_FORK=0"
    instance = None
    if order.preload and not unsafe:
        instance, unsafe = _preload(order, built)
    if unsafe:
        logger.warning("replicas_are_spawned app=%s reason=%s", order.app, unsafe)
    else:
        note_threads()
        counting_libraries()
        make_ready(built)
    result = BuildResult(
        order.build_id,
        code_version=version,
        deployments=describe(built),
        ingress=built.ingress_name,
        route_prefix=built.route_prefix,
        fork_unsafe=unsafe,
        is_pinned=is_pinned(order, environment),
        grpc_methods=tuple(codec.described() for codec in built.grpc.values()),
    )
    return result, built, instance


def _preload(order: BuildOrder, built: BuiltApplication) -> tuple[Any, str]:
    deployment = built.deployments[order.preload]
    set_template_of(deployment.name)
    try:
        with _stack_in_log_while_slow(order):
            instance = new_preloaded(deployment)
    # whatever user code raises, `sys.exit()` included, is the user's news
    except BaseException as error:
        raise DeployError(user_traceback(error)) from error
    return instance.value, instance.unfit_reason or fork_unsafe_reason(left_by="constructor", hook=HOOK)


@contextmanager
def _stack_in_log_while_slow(order: BuildOrder) -> Iterator[None]:
    # nobody can ask this process where it is: what hangs is found in the log. The watch is a thread, so it ends before any
    # are judged
    try:
        file = open(fork_server_log(order.log_dir), "ab")  # noqa: SIM115 - closed below, unless there is none
    except OSError:
        # logs are expendable
        yield
        return
    with file:
        faulthandler.dump_traceback_later(max(SLOW_START_S, 0.1), repeat=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
