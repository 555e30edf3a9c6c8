"""The fork server's side: a process for each policy, what it was asked, and its end when it takes too long.

The fork server has one thread and must never wait: questions and answers are messages, a process that hangs is killed.
"""

import logging
import select
import socket
from collections.abc import Callable
from typing import Protocol

from servd.exceptions import ProtocolError
from servd.ground.clock import SystemClock
from servd.ground.host_limits import told
from servd.ground.quick_dataclass import dataclass
from servd.wire.codec import RecordReader, record
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk

_READ_BYTES = 64 * 1024
_JOIN_S = 1.0

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


Fork = Callable[[socket.socket], Child]
"""Forks a process that answers on this end of a pair; raises OSError where the host gives none."""


@dataclass(slots=True)
class _Policy:
    """One that lives. asks: id -> when its time is over."""

    socket: socket.socket
    process: Child
    reader: RecordReader
    asks: dict[str, float]


class PolicyDesk:
    """Processes of policies, by import path and arguments. poller: learns of their descriptors."""

    def __init__(self, fork: Fork, poller: select.poll) -> None:
        self._fork = fork
        self._poller = poller
        self._policies: dict[tuple[str, str], _Policy] = {}

    def __repr__(self) -> str:
        return f"PolicyDesk({sorted(function for function, _ in self._policies)})"

    def ask(self, ask: PolicyAsk) -> list[PolicyAnswer]:
        """Pass a question on; what can be answered at once."""
        key = (ask.function, ask.kwargs)
        try:
            policy = self._policies.get(key) or self._start(key)
            policy.socket.sendall(record(ask))
        except OSError as error:
            # its end is heard of at the next look
            return [PolicyAnswer(ask.ask_id, error=f"its process cannot be asked: {told(error)}")]
        policy.asks[ask.ask_id] = _now() + ask.deadline_s
        return []

    def hear(self, fd: int) -> list[PolicyAnswer]:
        """What the process behind a descriptor says; nothing if it is no policy's."""
        key = next((key for key, policy in self._policies.items() if policy.socket.fileno() == fd), None)
        if key is None:
            return []
        policy = self._policies[key]
        try:
            data = policy.socket.recv(_READ_BYTES)
            answers = [answer for answer in policy.reader.feed(data) if isinstance(answer, PolicyAnswer)]
        except (OSError, ProtocolError):
            data, answers = b"", []
        for answer in answers:
            policy.asks.pop(answer.ask_id, None)
        return answers if data else [*answers, *self._end(key, "its process has ended")]

    def look(self) -> list[PolicyAnswer]:
        """End what takes too long."""
        now = _now()
        late = [key for key, policy in self._policies.items() if min(policy.asks.values(), default=now + 1) <= now]
        return [answer for key in late for answer in self._end(key, "it took too long, and was ended")]

    def close(self) -> None:
        """End all of them."""
        for key in list(self._policies):
            self._end(key, "")

    def _start(self, key: tuple[str, str]) -> _Policy:
        mine, its = socket.socketpair()
        try:
            process = self._fork(its)
        except OSError:
            mine.close()
            raise
        finally:
            its.close()
        mine.settimeout(_JOIN_S)
        self._poller.register(mine, select.POLLIN)
        policy = self._policies[key] = _Policy(mine, process, RecordReader(), {})
        logger.info("policy_started function=%s pid=%s", key[0], process.pid)
        return policy

    def _end(self, key: tuple[str, str], reason: str) -> list[PolicyAnswer]:
        policy = self._policies.pop(key)
        self._poller.unregister(policy.socket)
        policy.socket.close()
        policy.process.kill()
        policy.process.join(_JOIN_S)
        if reason:
            logger.warning("policy_ended function=%s pid=%s reason=%s", key[0], policy.process.pid, reason)
        return [PolicyAnswer(ask_id, error=reason) for ask_id in policy.asks]
