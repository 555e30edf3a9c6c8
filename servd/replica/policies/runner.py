"""The policy's own process: asks user code on an event loop, where its tasks go on, and keeps the state that it returns."""

import asyncio
import ctypes
import importlib
import json
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from servd.documents.autoscaling import AutoscalingConfig
from servd.documents.autoscaling_context import AutoscalingContext, context_of
from servd.ground import process
from servd.ground.clock import SystemClock
from servd.ground.ids import DeploymentID
from servd.ground.settings import FORK_SERVER_FILE
from servd.observability import logs
from servd.observability.described import text_of
from servd.observability.error_groups import ErrorGroups, ErrorsReport
from servd.observability.failure import failure_of
from servd.wire.build_messages import BuildOrder
from servd.wire.codec import RecordReader, record
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk

_READ_BYTES = 64 * 1024
_PR_SET_PDEATHSIG = 1
_LONGEST_ERROR = 500

logger = logging.getLogger(__name__)


def run(sock: socket.socket, parent: int, title: str, order: BuildOrder) -> None:
    """Answer until the fork server is gone. parent: its pid. order: its own."""
    process.show_title(title)
    # a policy that hangs must not outlive it
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    asyncio.run(_answer_all(sock, order))


async def _answer_all(sock: socket.socket, order: BuildOrder) -> None:
    # a policy is called on a loop, as in Ray's controller: tasks that it starts there go on between the questions
    loop, reader, runner = asyncio.get_running_loop(), RecordReader(), PolicyRunner(order.app)
    sock.setblocking(False)
    while data := await loop.sock_recv(sock, _READ_BYTES):
        for ask in reader.feed(data):
            if isinstance(ask, PolicyAsk):
                answer = runner.answer(ask)
                whose = f"{order.fork_server_id}/{ask.deployment}"
                said = (answer, *runner.errors_since(whose, loop.time()))
                await loop.sock_sendall(sock, b"".join(map(record, said)))


def run_spawned(sock: socket.socket, parent: int, title: str, order: BuildOrder, directory: str) -> None:
    """`run` in a fresh interpreter, with the import path, variables and log of the fork server of `order`.

    directory: the current one.
    """
    process.forget_start_method()
    os.chdir(directory)
    logs.setup(
        "fork_server",
        order.fork_server_id,
        order.log_dir,
        FORK_SERVER_FILE,
        request_fields=lambda: ("", "", "", "", order.app, ""),
        runs_application=True,
    )
    run(sock, parent, title, order)


class PolicyRunner:
    """One policy, made at the first question, and the state that it has returned for each deployment."""

    def __init__(self, app: str = "") -> None:
        self._errors = ErrorGroups()
        self._app = app
        self._policy: Callable[..., Any] | None = None
        self._states: dict[DeploymentID, dict[str, Any]] = {}
        self._error = ""

    def answer(self, ask: PolicyAsk) -> PolicyAnswer:
        """What the policy wants, or why that is not known."""
        try:
            if self._policy is None:
                self._policy = load_policy(ask.function, json.loads(ask.kwargs))
            found = self._wanted(self._policy, ask)
        # whatever user code raises, `sys.exit()` included, is the user's news
        except BaseException as error:
            told = f"{type(error).__name__}: {text_of(error)}"[:_LONGEST_ERROR]
            failure = failure_of(
                error, app=self._app, deployment=ask.deployment, method=ask.function, at=SystemClock().wall_time()
            )
            self._errors.add(failure)
            if told != self._error:
                # it is asked once a second
                logger.error("policy_failed error=%s function=%s\n%s", failure.id, ask.function, failure.traceback)
            self._error = told
            return PolicyAnswer(ask.ask_id, error=told)
        self._error = ""
        return PolicyAnswer(ask.ask_id, found)

    def errors_since(self, whose: str, now: float) -> list[ErrorsReport]:
        """What it raised since this was asked last, at least a second ago. whose: who reports. now: monotonic seconds."""
        found: list[ErrorsReport] = []

        def keep(report: ErrorsReport) -> bool:
            found.append(replace(report, replica_id=whose))
            return True

        self._errors.say(keep, now)
        return found

    def _wanted(self, policy: Callable[..., Any], ask: PolicyAsk) -> dict[str, float]:
        wall_time = SystemClock().wall_time()
        contexts: dict[DeploymentID, AutoscalingContext] = {}
        for told in json.loads(ask.contexts):
            deployment = DeploymentID(told["deployment"], told["app"])
            config = AutoscalingConfig.model_validate(told["config"])
            contexts[deployment] = context_of(told, config, self._states.get(deployment, {}), wall_time)
        if ask.of_application:
            counts, states = _pair(policy(contexts))
            if not isinstance(counts, Mapping) or not isinstance(states or {}, Mapping):
                raise TypeError(
                    "a policy of an application returns (deployment id -> replicas, deployment id -> state)"
                )
            unknown = [*(counts.keys() - contexts.keys()), *((states or {}).keys() - contexts.keys())]
            if unknown:
                raise ValueError(f"the policy returned {unknown[0]}, which it was not asked about")
        else:
            ((deployment, context),) = contexts.items()
            count, state = _pair(policy(context))
            counts, states = {deployment: count}, {deployment: state}
        found = {deployment.name: _count(count) for deployment, count in counts.items()}
        for deployment, state in (states or {}).items():
            if not isinstance(state or {}, Mapping):
                raise TypeError(f"the state of a policy is a dict, got {type(state).__name__}")
            self._states[deployment] = dict(state or {})
        return found


def load_policy(path: str, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """The policy at an import path; an instance if it is a class.

    Raises:
        TypeError: it cannot be called, or is a function and has arguments.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type):
        found = found(**kwargs)
    elif kwargs:
        raise TypeError(f"{path} is no class: policy_kwargs are the arguments of one")
    if not callable(found):
        raise TypeError(f"{path} cannot be called")
    policy: Callable[..., Any] = found
    return policy


def _pair(returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"a policy returns (replicas, state), got {type(returned).__name__}")
    return returned


def _count(value: Any) -> float:
    # numpy's numbers are some, and none of the interpreter's
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise TypeError(f"the count of replicas must be a number, got {value!r}")
    return float(value)
