"""How handles of this process reach deployments: its caller, and the loop on which that lives."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from servd.calls.arguments import NO_ARGUMENTS, Arguments
from servd.calls.request_context import RequestContext
from servd.ground.quick_dataclass import dataclass


class Ticket(Protocol):
    """One call on its way: awaitable for the parts of the answer, or async iterable of parts for a stream."""

    def __await__(self) -> Any: ...

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def cancel(self) -> Any:
        """Take the call back, best effort."""
        ...

    def when_sent(self, told: Callable[[], None]) -> None:
        """Call `told` once a replica is chosen; at once if one is."""
        ...


class Calls(Protocol):
    """What handles need of the process's `caller.Caller`; all of it on the loop's thread."""

    def submit_call(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        *,
        stream: bool = False,
        model_id: str = "",
        deadline: float | None = None,
        session_id: str = "",
        arguments: Arguments = NO_ARGUMENTS,
    ) -> Ticket:
        """Send a call to a replica of the deployment. session_id, arguments: what a router may go by."""
        ...

    async def submit_to_all(
        self, deployment: str, method: str, parts: list[Any], context: RequestContext, deadline: float | None
    ) -> Sequence[Ticket]:
        """Send a call to each of its replicas."""
        ...


@dataclass(frozen=True, slots=True)
class Process:
    """How handles of this process reach deployments. loop: where `caller` lives; thread_id: of that loop."""

    caller: Calls
    loop: asyncio.AbstractEventLoop
    thread_id: int
    socket_dir: str = ""


_process: Process | None = None
_local: dict[str, Process] = {}


def install_process(
    caller: Calls, loop: asyncio.AbstractEventLoop, *, socket_dir: str = "", thread_id: int | None = None
) -> Process:
    """Give this process its caller; replaces an earlier one.

    thread_id: of the thread that runs `loop`, by default the current one.
    """
    global _process
    _process = Process(caller, loop, threading.get_ident() if thread_id is None else thread_id, socket_dir)
    return _process


def remove_process() -> None:
    """Forget the process's caller: the next handle call asks for a new one."""
    global _process
    _process = None


def set_local_process(app: str, runner: Process | None) -> None:
    """Let handles to an application stay in this process (local mode); None takes it back."""
    if runner is None:
        _local.pop(app, None)
    else:
        _local[app] = runner


def local_process(app: str) -> Process | None:
    """What runs an application in this process, None for all others."""
    return _local.get(app)


def installed_process() -> Process | None:
    """The process's caller, if it has one."""
    return _process
