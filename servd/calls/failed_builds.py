"""Builds that failed, as errors beside those of replicas: an import, a factory, the constructor of a `preload`."""

import logging

from servd.exceptions import DeployError
from servd.ground.clock import SystemClock
from servd.observability.described import slot
from servd.observability.error_groups import ErrorGroups, ErrorsReport
from servd.observability.failure import failure_of
from servd.observability.tracebacks import users_place
from servd.wire.build_messages import BuildOrder

logger = logging.getLogger(__name__)


def failed_build(order: BuildOrder, error: DeployError) -> ErrorsReport:
    """Logs why the build failed, and gives what the controller keeps of it, under the fork server's id."""
    cause = slot(error, "__cause__")
    clock = SystemClock()
    failure = failure_of(
        # what user code raised, where it did; else there is more in what was made of it
        cause if cause is not None and users_place(cause) else error,
        app=order.app,
        deployment=order.preload,
        method="__init__" if order.preload else "import",
        at=clock.wall_time(),
    )
    logger.error(
        "build_failed error=%s deployment=%s build=%s\n%s", failure.id, order.preload or "-", order.build_id, error
    )
    groups, said = ErrorGroups(order.fork_server_id), list[ErrorsReport]()
    groups.add(failure)
    groups.say(lambda report: not said.append(report), clock.now(), at_once=True)  # type: ignore[func-returns-value]
    return said[0]
