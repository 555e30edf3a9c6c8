"""The fork server's side: a process for each policy, what it was asked, and its end when it takes too long.

The fork server has one thread and must never wait: questions and answers are messages, a process that hangs is killed.
"""

import contextlib
import logging
import math
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from servd.exceptions import ProtocolError
from servd.ground import descendants, entry
from servd.ground.clock import SystemClock
from servd.ground.host_limits import told
from servd.ground.quick_dataclass import dataclass
from servd.wire.codec import RecordReader, record
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk

if TYPE_CHECKING:
    from servd.observability.error_groups import ErrorsReport

_READ_BYTES = 64 * 1024
_JOIN_S = 1.0
UNASKED_S = 60.0
"""A policy that nobody has asked for so long is not in force any more."""
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0
"""From an end to the next start: twice as long each time, until it has done for the longest of them without an end."""
IT_STARTS = "its process is a fresh one that imports the application first, and has not answered yet"

_now = SystemClock().now
logger = logging.getLogger(__name__)


class Child(Protocol):
    """A process as `multiprocessing` has them."""

    @property
    def pid(self) -> int | None:
        """Of the system."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        ...


class PolicyProcess:
    """A process of policies. Whatever user code has started in it ends with it."""

    def __init__(self, process: Child) -> None:
        self._process = process
        self.pid = process.pid
        self.join = process.join

    def __repr__(self) -> str:
        return f"PolicyProcess({self.pid})"

    def kill(self) -> None:
        """End it."""
        assert self.pid is not None
        try:
            descendants.kill_tree(self.pid)
        except OSError:
            # no descriptor is left to look with
            self._process.kill()


Fork = Callable[[socket.socket, str], Child]
"""Starts a process that answers on this end of a pair, for a deployment by its bare name ("" = for the application); raises
OSError where the host gives none."""


_Key = tuple[str, str, str]
"""Bare name of the deployment, "" for the application's; import path; arguments as JSON text."""


@dataclass(slots=True)
class _Policy:
    """One that lives. asks: id -> when its time is over. asked_at: when last.

    unsent: the rest of what it was asked, while it takes nothing. starts_until: when its first answer is due at the latest; -inf
    where nothing but questions has a time, as after that answer.
    """

    socket: socket.socket
    process: Child
    reader: RecordReader
    asks: dict[str, float]
    asked_at: float
    unsent: bytearray
    starts_until: float


@dataclass(frozen=True, slots=True)
class _Rest:
    """Of a policy whose process has ended. reason: why, and when the next one starts. until: monotonic seconds."""

    reason: str
    rest_s: float
    until: float


class PolicyDesk:
    """Processes of policies, by whose they are, import path and arguments. poller: learns of their descriptors.

    start_s: for so long one may answer nothing at first, whatever the deadlines of its questions; it is asked one until then.
    """

    def __init__(self, fork: Fork, poller: select.poll, start_s: float = 0.0) -> None:
        self._start_s = start_s
        self._fork = fork
        self._poller = poller
        self._policies: dict[_Key, _Policy] = {}
        self._rests: dict[_Key, _Rest] = {}
        self._begun: set[int] = set()

    def __repr__(self) -> str:
        return f"PolicyDesk({sorted(function for _, function, _ in self._policies)})"

    def fds(self) -> set[int]:
        """Descriptors of the lines to them."""
        return {policy.socket.fileno() for policy in self._policies.values()} | self._begun

    def ask(self, ask: PolicyAsk) -> list[PolicyAnswer]:
        """Pass a question on; what can be answered at once."""
        # deployments share none: they would wait for each other
        key = (ask.deployment, ask.function, ask.kwargs)
        now, policy, rest = _now(), self._policies.get(key), self._rests.get(key)
        if policy is not None and policy.starts_until > now:
            # it would answer all of them at once then, each one late
            policy.asked_at = now
            return [PolicyAnswer(ask.ask_id, error=IT_STARTS)]
        if policy is None and rest is not None and now < rest.until:
            return [PolicyAnswer(ask.ask_id, error=rest.reason)]
        try:
            policy = policy or self._start(key)
            policy.unsent += record(ask)
            self._send(policy)
        except OSError as error:
            # its end is heard of at the next look
            return [PolicyAnswer(ask.ask_id, error=f"its process cannot be asked: {told(error)}")]
        policy.asked_at = now
        policy.asks[ask.ask_id] = now + ask.deadline_s
        return []

    def hear(self, fd: int) -> "list[PolicyAnswer | ErrorsReport]":
        """What the process behind a descriptor says, and what its policy raised; nothing if it is no policy's."""
        key = next((key for key, policy in self._policies.items() if policy.socket.fileno() == fd), None)
        if key is None:
            return []
        policy = self._policies[key]
        try:
            self._send(policy)
            data = policy.socket.recv(_READ_BYTES)
            said = policy.reader.feed(data)
        except BlockingIOError:
            return []
        except (OSError, ProtocolError):
            data, said = b"", []
        for answer in said:
            if isinstance(answer, PolicyAnswer):
                policy.asks.pop(answer.ask_id, None)
                policy.starts_until = -math.inf
        return said if data else [*said, *self._end(key, "its process has ended")]

    def look(self) -> list[PolicyAnswer]:
        """End what takes too long, and what nobody asks any more."""
        now = _now()
        self._rests = {
            key: rest for key, rest in self._rests.items() if now < rest.until + LONGEST_REST_S + self._start_s
        }
        for key in [key for key, policy in self._policies.items() if now >= policy.asked_at + UNASKED_S]:
            logger.info("policy_not_needed function=%s pid=%s", key[1], self._policies[key].process.pid)
            self._end(key, "")
        answers = []
        for key, policy in list(self._policies.items()):
            late = [ask_id for ask_id, until in policy.asks.items() if until <= now]
            if policy.starts_until > now:
                for ask_id in late:
                    del policy.asks[ask_id]
                    answers.append(PolicyAnswer(ask_id, error=IT_STARTS))
            elif late or policy.starts_until > -math.inf:
                answers += self._end(key, "it took too long, and was ended")
        return answers

    def close(self) -> None:
        """End all of them."""
        for key in list(self._policies):
            self._end(key, "")

    def _send(self, policy: _Policy) -> None:
        """As much as it takes now: whoever takes nothing must not hold up the others."""
        with contextlib.suppress(BlockingIOError):
            del policy.unsent[: policy.socket.send(policy.unsent) if policy.unsent else 0]
        self._poller.modify(policy.socket, select.POLLIN | (select.POLLOUT if policy.unsent else 0))

    def _start(self, key: _Key) -> _Policy:
        # what a policy says can be read then; fork servers without one do without it
        entry.load("servd.observability.error_groups")
        mine, its = socket.socketpair()
        self._begun = {mine.fileno()}
        try:
            process = self._fork(its, key[0])
        except OSError:
            mine.close()
            raise
        finally:
            self._begun = set()
            its.close()
        mine.setblocking(False)
        self._poller.register(mine, select.POLLIN)
        starts_until = _now() + self._start_s if self._start_s else -math.inf
        policy = self._policies[key] = _Policy(mine, process, RecordReader(), {}, _now(), bytearray(), starts_until)
        logger.info("policy_started function=%s pid=%s", key[1], process.pid)
        return policy

    def _end(self, key: _Key, reason: str) -> list[PolicyAnswer]:
        policy = self._policies.pop(key)
        self._poller.unregister(policy.socket)
        policy.socket.close()
        policy.process.kill()
        policy.process.join(_JOIN_S)
        if not reason:
            return []
        before = self._rests.pop(key, None)
        rest_s = FIRST_REST_S if before is None else min(2 * before.rest_s, LONGEST_REST_S)
        # the same words as long as it rests: they are news only once
        reason = f"{reason}; the next one starts {rest_s:g} s after that"
        self._rests[key] = _Rest(reason, rest_s, _now() + rest_s)
        logger.warning("policy_ended function=%s pid=%s reason=%s", key[1], policy.process.pid, reason)
        return [PolicyAnswer(ask_id, error=reason) for ask_id in policy.asks]
