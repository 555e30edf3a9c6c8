"""One call to every replica of a deployment, beside its waiting line and beyond what a replica takes at a time."""

import asyncio
import random
from typing import Any, Protocol

from servd.calls import traced
from servd.calls.outgoing import BroadcastTicket, Outgoing
from servd.calls.request_context import RequestContext
from servd.calls.request_router import RequestRouter
from servd.calls.routing_rules import Candidate
from servd.exceptions import ReplicaDiedError, RequestError
from servd.wire.messages import DeploymentTargets


class Sender(Protocol):
    """What is needed of the process's `Caller`."""

    loop: asyncio.AbstractEventLoop

    def cancel(self, call: Outgoing) -> None:
        """Take a request back."""
        ...

    def subscribe(self, deployment: str) -> None:
        """Ask for the targets of a deployment."""
        ...

    def router_of(self, deployment: str) -> RequestRouter[Outgoing]:
        """Candidates and waiting line of a deployment."""
        ...

    def submit(self, call: Outgoing, router: RequestRouter[Outgoing]) -> None:
        """Send a request to one of the router's candidates."""
        ...


class _OneReplica(RequestRouter[Outgoing]):
    """Sends one call to one replica, and nowhere else if that does not take it or dies with it."""

    __slots__ = ("_replica", "_replica_id")

    def __init__(self, deployment: str, replica: Candidate) -> None:
        super().__init__(deployment, random.Random())
        self.targets = DeploymentTargets(deployment, may_grow=True)
        self._replica: Candidate | None = replica
        self._replica_id = replica.replica_id

    def choose(self, model_id: str = "", work: Outgoing | None = None) -> Candidate | None:  # noqa: ARG002
        """The replica, once."""
        replica, self._replica = self._replica, None
        return replica

    def admit_to_line(self, work: Outgoing) -> RequestError | None:  # noqa: ARG002
        """There is no line."""
        return ReplicaDiedError(self._replica_id, "it took the call no more")


async def submit_to_all(
    caller: Sender, deployment: str, method: str, parts: list[Any], context: RequestContext, deadline: float | None
) -> list[BroadcastTicket]:
    """Call a method of each replica that runs now; on the caller's loop.

    Args:
        parts, deadline: as of `Caller.submit_call`.

    Raises:
        RequestError: there is no such deployment, or it is unavailable. TimeoutError: the deadline passed.
    """
    caller.subscribe(deployment)
    router = caller.router_of(deployment)
    if not router.is_known:
        known = asyncio.Event()
        router.when_known.append(known.set)
        async with asyncio.timeout_at(deadline):
            await known.wait()
    if (refused := router.refusal()) is not None:
        raise refused
    tickets = []
    for replica in list(router.candidates):
        about = (caller.loop, caller.cancel, method, parts, context, False, "", deadline)
        ticket = traced.new_ticket(BroadcastTicket, deployment, about)
        caller.submit(ticket, _OneReplica(deployment, replica))
        tickets.append(ticket)
    return tickets
