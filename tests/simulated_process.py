"""A process of the simulated host."""

from dataclasses import dataclass

from servd.controller.plan import events
from servd.wire.build_messages import BuildResult
from servd.wire.messages import FORK_SERVER, PROXY, REPLICA, ReplicaGoal


@dataclass
class Process:
    """A replica, fork server or proxy of the simulated host."""

    kind: str
    id: str
    alive: bool = True
    goal: ReplicaGoal | None = None
    applied: str = ""
    ready: bool = False
    broken: bool = False
    failed: bool = False
    draining: bool = False
    was_forked: bool = False
    lost_wait: str = ""
    result: BuildResult | None = None


def exit_news(kind: str, identifier: str, code: int | None) -> events.Event:
    """How the controller hears of its end."""
    match kind:
        case "ReplicaFact":
            return events.Exited(REPLICA, identifier, code)
        case "ForkServerFact":
            return events.Exited(FORK_SERVER, identifier, code)
        case _:
            return events.Exited(PROXY, identifier, code)
