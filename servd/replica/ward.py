"""What a warden asks and tells of the replica that it guards."""

from typing import Protocol

from servd.wire.messages import MetricFamily, ReplicaGoal, Routing


class Ward(Protocol):
    """The main thread's side. All of it is called on the main loop but the counts."""

    @property
    def ongoing(self) -> int:
        """Admitted requests; read from the warden's thread."""

    def queued(self) -> dict[str, int]:
        """Calls of this process that wait for a replica, per deployment; read from the warden's thread."""

    def metrics(self) -> list[MetricFamily]:
        """What was counted; called on the warden's thread."""

    def requests(self) -> tuple[int | None, int, tuple[int, ...], int]:
        """Requests that ended, None where nobody counts, errors, latencies by bucket, and how many wait for a thread; called on
        the warden's thread."""

    def set_goal(self, goal: ReplicaGoal) -> None:
        """The controller's present goal."""

    def apply_routing(self, routing: Routing) -> None:
        """The controller's present routing."""

    def occupied(self) -> tuple[float, int] | None:
        """Since when every thread of sync handlers is at one job, and the longest at it; read from the warden's thread."""

    @property
    def is_wanted(self) -> bool:
        """Whether requests wait for this very replica; read from the warden's thread."""

    def hold(self, is_held: bool) -> None:
        """Whether requests can get nowhere here now: they had better go elsewhere."""

    @property
    def can_end_early(self) -> bool:
        """Whether its start could be broken off so that the instance is told; read from the warden's thread."""

    def address_is_gone(self) -> None:
        """The replica's socket was removed, and its directory can take another."""

    def lifetime_ended(self) -> None:
        """The daemon is gone: drain now."""
