"""From an environment that is applied to a built application, and to the replicas that are forked from it.

A fork server loads this once the application's packages can be found: what is imported here looks for them.

What the start of each replica needs is made here too, before the fork (`_make_ready`): replicas share it, and start sooner. A
forked child shares each page of memory until one of the two writes to it. What a child makes is its own, and so is each page
with an object that it has looked at, since Python counts references in the objects themselves.
"""

import asyncio
import faulthandler
import logging
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from servd.app.built import BuiltApplication, describe
from servd.app.deployment import Deployment
from servd.calls.process import Process
from servd.calls.replica_context import ProcessIds, ReplicaContext, set_template_of
from servd.exceptions import DeployError
from servd.ground.ids import DeploymentID, ReplicaID, ReplicaRank, node_id_of
from servd.ground.process import Usage, open_fds
from servd.ground.quick_dataclass import compile_now
from servd.ground.settings import SLOW_START_S, fork_server_log, variable
from servd.observability import logs
from servd.observability.access_log import short_latencies
from servd.observability.figures import FiguresReport
from servd.observability.tracebacks import user_traceback
from servd.replica.code.environment import Environment
from servd.replica.code.importing import code_version, is_pinned, load_application
from servd.replica.instances import HOOK, new_preloaded
from servd.replica.main import run_forked
from servd.replica.methods import NEVER_CALLED, Method, are_handlers_sync, method_of, never_called
from servd.replica.native import written
from servd.replica.native.fork_safety import fork_unsafe_reason
from servd.replica.native.generators import note_generators, unseeded_noted
from servd.replica.native.inherited import let_be_renewed, shared_lines
from servd.replica.native.locked_files import locked_files
from servd.replica.native.lost_waits import note_threads
from servd.replica.native.pools import counting_libraries, let_tokenizers_do_without
from servd.wire.build_messages import BuildOrder, BuildResult
from servd.wire.messages import Hello, MetricFamily, MetricsReport, ReplicaGoal, ReplicaReport, Subscribe

__all__ = ["built_from", "run_forked"]

_CLASSES = (
    DeploymentID,
    FiguresReport,
    Hello,
    Method,
    MetricFamily,
    MetricsReport,
    Process,
    ProcessIds,
    ReplicaContext,
    ReplicaGoal,
    ReplicaID,
    ReplicaRank,
    ReplicaReport,
    logs.Style,
    Subscribe,
    Usage,
)
"""Those that each replica makes instances of at its start."""

_RESULTS: tuple[type[Any], ...] = (str, bytes, dict, list, tuple, int, float, bool, type(None))
_ASKED_ABOUT: tuple[type[Any], ...] = (*_RESULTS, asyncio.Task, asyncio.Future, MethodType)
"""What `asyncio` asks of, and what handlers return mostly: whether it can be awaited."""

logger = logging.getLogger(__name__)


def built_from(order: BuildOrder, environment: Environment) -> tuple[BuildResult, BuiltApplication, Any]:
    """Import and flattening, and the instance that the order wants to be there before the first fork (else None).

    Raises:
        DeployError: as `load_application`, or the constructor failed.
    """
    before = open_fds()
    with _stack_in_log_while_slow(order), unseeded_noted():
        built = load_application(order, environment)
    _warn_of_what_is_never_called(order.app, built)
    version = code_version(order, environment)
    opened, locked = shared_lines(before), locked_files(open_fds() - before)
    unsafe = fork_unsafe_reason(opened, locked, hook=HOOK) if order.preload else fork_unsafe_reason(opened, locked)
    if variable("FORK", "1") == "0":
        unsafe = "SERVD_FORK=0"
    instance = None
    if order.preload and not unsafe:
        instance, unsafe = _preload(order, built)
        opened, locked = shared_lines(before), locked_files(open_fds() - before)
        unsafe = unsafe or fork_unsafe_reason(opened, locked, left_by="constructor", hook=HOOK)
    if unsafe:
        logger.warning("replicas_are_spawned app=%s reason=%s", order.app, unsafe)
    else:
        written.flush_and_keep()
        note_threads()
        note_generators()
        counting_libraries()
        let_tokenizers_do_without()
        let_be_renewed(opened, before)
        _make_ready(built)
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


def _warn_of_what_is_never_called(app: str, built: BuiltApplication) -> None:
    for deployment in built.deployments.values():
        for name in never_called(deployment.func_or_class):
            reason = NEVER_CALLED[name]
            logger.warning("never_called app=%s deployment=%s method=%s reason=%s", app, deployment.name, name, reason)


def _preload(order: BuildOrder, built: BuiltApplication) -> tuple[Any, str]:
    """The instance, and which loop or task of its constructor's forbids to fork with it, "" for none."""
    deployment = built.deployments[order.preload]
    set_template_of(deployment.name)
    try:
        with _stack_in_log_while_slow(order), unseeded_noted():
            instance = new_preloaded(deployment)
    # whatever user code raises, `sys.exit()` included, is the user's news
    except BaseException as error:
        raise DeployError(user_traceback(error)) from error
    finally:
        # policies are forked from here too
        set_template_of("")
    return instance.value, instance.unfit_reason


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


def _make_ready(built: BuiltApplication) -> None:
    """Make what replicas of this build would make at their start, each for itself."""
    compile_now(*_CLASSES)
    short_latencies(is_json=False)
    # the first one loads a module, from Python 3.13 on
    node_id_of("")
    # makes the policy
    asyncio.set_event_loop(None)
    for kind in _ASKED_ABOUT:
        # the answer is remembered; to find it means a look at all that derives from these
        issubclass(kind, Coroutine), issubclass(kind, Awaitable)
    logs.revive(for_children=True)
    for deployment in built.deployments.values():
        _know_handlers(deployment)


def _know_handlers(deployment: Deployment) -> None:
    target: Any = deployment.func_or_class
    if deployment.is_function:
        method_of("__call__", target)
        return
    are_handlers_sync(target)
    if isinstance(entry := getattr(target, "__call__", None), FunctionType):  # noqa: B004 - the method itself is wanted
        method_of("__call__", MethodType(entry, target))
