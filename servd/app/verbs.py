"""What the deprecated methods of a deployment ask of the verbs, which stand above it and hand themselves in."""

from typing import Any, Protocol

from servd.ground.ids import DeploymentID


class Verbs(Protocol):
    """See `legacy.Legacy`, which is one."""

    def root_url(self) -> str:
        """URL under which applications are served."""
        ...

    def deploy_alone(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, blocking: bool) -> None:
        """Deploy one deployment as an application of its name."""
        ...

    def delete_alone(self, name: str) -> None:
        """Delete what `deploy_alone` made."""
        ...

    def scale_live(self, deployment: DeploymentID, count: int, *, blocking: bool) -> None:
        """Give a live deployment so many replicas."""
        ...

    def delete_live(self, deployment: DeploymentID) -> None:
        """Delete the application of a live deployment."""
        ...

    def legacy_handle(self, name: str, *, sync: bool) -> Any:
        """A two-step handle by name."""
        ...


_verbs: Verbs | None = None


def hand_in(verbs: Verbs) -> None:
    """Make these the verbs of this process."""
    global _verbs
    _verbs = verbs


def verbs() -> Verbs:
    """The verbs of this process; whoever has a deployment has them, since its class is known as `servd.api.Deployment`."""
    assert _verbs is not None
    return _verbs
