"""The controller's lines to the fork servers: it connects, they greet with their build and their living children."""

import asyncio
import logging
from functools import partial
from typing import Any, Protocol

from servd.exceptions import ProtocolError
from servd.ground.edition import difference, edition_of
from servd.observability.error_groups import ErrorsReport
from servd.wire.build_messages import BuildResult
from servd.wire.codec import RecordReader, record
from servd.wire.messages import ChildExited, Forked, ForkOrder, ForkServerHello, ForkServerStop, ReplicaStart
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk

_RETRY_S = 0.005
_LAST_RETRY_S = 0.1

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who wants to know. All methods are called on the loop; what comes again means the same."""

    def fork_server_greeted(self, fork_server_id: str, pid: int) -> None:
        """It listens."""
        ...

    def fork_server_misunderstood(self, fork_server_id: str, reason: str) -> None:
        """It speaks another language, and will never be of use."""
        ...

    def built(self, fork_server_id: str, result: BuildResult) -> None:
        """Its build has ended."""
        ...

    def build_errors(self, fork_server_id: str, report: ErrorsReport) -> None:
        """Why its build failed, or what a policy of it raised."""
        ...

    def forked(self, child: Forked) -> None:
        """It forked a replica, or could not."""
        ...

    def child_exited(self, exited: ChildExited) -> None:
        """A replica of it is gone."""
        ...

    def policy_answered(self, answer: PolicyAnswer) -> None:
        """A policy was asked there."""
        ...


class ForkServerLines:
    """One line per fork server; reconnects until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._loop = loop
        self._listener = listener
        self._lines: dict[str, _Line] = {}

    def __repr__(self) -> str:
        return f"ForkServerLines({sorted(self._lines)})"

    def connect(self, fork_server_id: str, path: str) -> None:
        """Keep a line to the fork server that listens at `path`, now or soon."""
        if fork_server_id not in self._lines:
            self._lines[fork_server_id] = _Line(self._loop, self._listener, fork_server_id, path)

    def order(self, fork_server_id: str, start: ReplicaStart) -> bool:
        """Order a replica; it is forked once the line is up. False when there is no such fork server."""
        line = self._lines.get(fork_server_id)
        if line is None:
            return False
        line.order(start)
        return True

    def ask(self, fork_server_id: str, ask: PolicyAsk) -> bool:
        """Ask a policy, once the line is up; False when there is no such fork server. A later one takes its place."""
        line = self._lines.get(fork_server_id)
        if line is None:
            return False
        line.ask(ask)
        return True

    def withdraw(self, replica_id: str) -> bool:
        """Take back an order; False when it was carried out, or may have been."""
        return any(line.withdraw(replica_id) for line in self._lines.values())

    def stop(self, fork_server_id: str) -> bool:
        """Tell it to exit; False when it does not listen (still importing, for one)."""
        line = self._lines.get(fork_server_id)
        return line is not None and line.stop()

    def close(self, fork_server_id: str) -> dict[str, bool]:
        """Forget it: it is gone. Gives the replicas whose orders it has not answered, and whether it got the order."""
        line = self._lines.pop(fork_server_id, None)
        return line.close() if line is not None else {}


class _Line(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener, fork_server_id: str, path: str) -> None:
        self._listener = listener
        self._id = fork_server_id
        self._path = path
        self._records = RecordReader()
        self._transport: asyncio.Transport | None = None
        self._is_greeted = False
        self._is_built = False
        self._orders: dict[str, ReplicaStart] = {}
        self._asks: dict[str, PolicyAsk] = {}
        self._sent: set[str] = set()
        self._had: set[str] = set()
        self._lost = loop.create_future()
        self._task = loop.create_task(self._run(loop))

    def order(self, start: ReplicaStart) -> None:
        self._orders[start.replica_id] = start
        self._send_orders()

    def withdraw(self, replica_id: str) -> bool:
        if replica_id in self._sent:
            return False
        return self._orders.pop(replica_id, None) is not None

    def ask(self, ask: PolicyAsk) -> None:
        self._asks[ask.deployment] = ask
        self._send_orders()

    def stop(self) -> bool:
        if self._transport is None or not self._is_built:
            return False
        self._transport.write(record(ForkServerStop()))
        return True

    def close(self) -> dict[str, bool]:
        sent = self._sent | self._had
        self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
        for ask in self._asks.values():
            self._listener.policy_answered(PolicyAnswer(ask.ask_id, error="its fork server has ended"))
        return {replica_id: replica_id in sent for replica_id in self._orders}

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        retry_s = _RETRY_S
        while True:
            self._lost = loop.create_future()
            try:
                await loop.create_unix_connection(partial(_itself, self), self._path)
            except OSError:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 1.5, _LAST_RETRY_S)
                continue
            await self._lost
            retry_s = _RETRY_S
            await asyncio.sleep(retry_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._records = RecordReader()
        self._is_greeted = False

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._records.feed(data):
                self._received(message)
        except ProtocolError as error:
            logger.error("fork_server_line_dropped fork_server=%s reason=%s", self._id, error)
            if self._transport is not None:
                self._transport.abort()
            self._listener.fork_server_misunderstood(self._id, str(error))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._is_greeted = False
        self._had |= self._sent
        self._sent.clear()
        if not self._lost.done():
            self._lost.set_result(None)

    def _received(self, message: Any) -> None:
        match message:
            case ForkServerHello():
                self._greeted(message)
            case Forked():
                self._forked(message)
            case PolicyAnswer():
                self._listener.policy_answered(message)
            case ErrorsReport():
                self._listener.build_errors(self._id, message)
            case ChildExited():
                self._orders.pop(message.replica_id, None)
                self._listener.child_exited(message)

    def _greeted(self, hello: ForkServerHello) -> None:
        if reason := difference(edition_of(hello.edition)):
            raise ProtocolError(reason)
        self._is_greeted = True
        self._listener.fork_server_greeted(self._id, hello.pid)
        for child in hello.children:
            self._forked(child)
        if hello.result is not None:
            self._is_built = True
            self._listener.built(self._id, hello.result)
        self._send_orders()

    def _forked(self, child: Forked) -> None:
        self._orders.pop(child.replica_id, None)
        self._sent.discard(child.replica_id)
        self._listener.forked(child)

    def _send_orders(self) -> None:
        if self._transport is None or not self._is_greeted or not self._is_built:
            return
        for replica_id, start in self._orders.items():
            if replica_id not in self._sent:
                self._sent.add(replica_id)
                self._transport.write(record(ForkOrder(start)))
        for ask in self._asks.values():
            self._transport.write(record(ask))
        self._asks.clear()


def _itself(line: _Line) -> _Line:
    return line
