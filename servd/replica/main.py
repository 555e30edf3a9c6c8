"""Entry points of a replica process: forked from a fork server, or spawned."""

import atexit
import faulthandler
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from servd.app.built import BuiltApplication
from servd.calls import traced
from servd.calls.failures import note_logged, tell
from servd.calls.request_context import current_request
from servd.exceptions import DeployError
from servd.ground import descendants, event_loop, process
from servd.ground.forks import EXIT_LIMIT_S, flush_streams
from servd.ground.ids import full_name_of
from servd.observability import logs
from servd.observability.access_log import AccessLog, place_of
from servd.observability.line_formatter import Fields
from servd.replica.code.environment import Environment
from servd.replica.code.importing import load_application
from servd.replica.life import Replica
from servd.replica.native import written
from servd.replica.native.pools import apply_thread_counts
from servd.replica.notes import noter
from servd.wire import sockets
from servd.wire.build_messages import BuildOrder
from servd.wire.messages import ReplicaStart

_MAX_SOCKETS = 4096
"""Two for each replica that this one calls."""

_GC_DEFAULT = gc.get_threshold()
_GC_OBJECTS = 10_000
"""New objects before the collector looks for cycles. Python's default is less than what the requests that are under way
together consist of, so it would look again and again without finding any.
"""

logger = logging.getLogger(__name__)


def run_forked(start: ReplicaStart, built: BuiltApplication, lifetime_fd: int, preloaded: Any = None) -> NoReturn:
    """Be the replica, in a process just forked; its first lines (signals, descriptors, gc) are done
    already. preloaded: the instance, where the template has made it.
    """
    _run(start, lambda: built, lifetime_fd, preloaded)


def run_spawned(
    start: ReplicaStart, order: BuildOrder, environment: Environment | DeployError, lifetime_fd: int
) -> NoReturn:
    """Be the replica, in a fresh interpreter; the build is part of its start. environment: the order's, or why there is none."""

    def load() -> BuiltApplication:
        if isinstance(environment, DeployError):
            raise environment
        return load_application(order, environment)

    _run(start, load, lifetime_fd)


def _run(
    start: ReplicaStart, load: Callable[[], BuiltApplication], lifetime_fd: int, preloaded: Any = None
) -> NoReturn:
    title = f"replica {start.replica_id}"
    process.begin(title, start.state_dir, lifetime_fd)
    descendants.lead(title, start.state_dir, start.socket_dir)
    os.environ.update(start.variables)
    apply_thread_counts(start.default_variables)
    full_name = full_name_of(start.app, start.deployment)
    file = logs.setup(
        "replica",
        start.replica_id,
        start.log_dir,
        logs.replica_file(full_name, start.replica_id),
        request_fields=_request_fields,
        runs_application=True,
        is_serving=True,
        on_error=note_logged,
    )
    logs.catch_descriptors(file)
    # a crash in native code leaves its stack among the last lines of the log
    # from Python 3.14 on the stack in C would follow, and push what the signal was out of the last lines of a post mortem
    options: dict[str, Any] = {"c_stack": False} if sys.version_info >= (3, 14) else {}
    faulthandler.enable(file.fileno(), **options)
    access = AccessLog(file, "replica", start.replica_id, place_of(noter))
    search_less_often()
    sockets.expect_at_most(_MAX_SOCKETS)

    async def live() -> int:
        return await Replica(start, load, lifetime_fd, access, preloaded).run()

    try:
        code = event_loop.run(live(), closes_loop=False, on_exit=_note_exit)
    # the last place that can tell what went wrong
    except BaseException:
        logger.exception("replica_failed")
        code = 1
    leave(code)


def _note_exit(error: BaseException) -> None:
    """User code: one task of one request wanted to end the process, which serves all the others too."""
    tell(error, "exit")


def search_less_often() -> None:
    """Let the garbage collector run when it may find something, unless the user's code said when it should."""
    if gc.get_threshold() == _GC_DEFAULT:
        gc.set_threshold(_GC_OBJECTS, *_GC_DEFAULT[1:])


def leave(code: int) -> NoReturn:
    """End the process: exit handlers and buffers first, since `os._exit` forgets both; nothing may hold it
    up.
    """
    timer = threading.Timer(EXIT_LIMIT_S, descendants.leave, (code,))
    timer.daemon = True
    timer.start()
    atexit._run_exitfuncs()
    written.flush()
    logs.finish()
    flush_streams()
    descendants.leave(code)


def _request_fields() -> Fields:
    request = current_request.get()
    return request.request_id, *traced.ids(), request.route, request.app_name, request.pattern
