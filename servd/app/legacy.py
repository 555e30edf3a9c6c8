"""What `url`, `deploy`, `delete` and `get_handle` of deployments do, of release 1.x: each is an application of its own name."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from servd.app.deployment import Deployment
from servd.calls.process import installed_process
from servd.calls.replica_context import replica_context
from servd.ground.ids import DeploymentID
from servd.ground.states import DeploymentStanding
from servd.handle import RayServeHandle, RayServeSyncHandle

if TYPE_CHECKING:
    from servd.client import Client


class Legacy:
    """See `verbs.Verbs`, which it is.

    Args:
        run: as `servd.run`. delete: as `servd.delete`.
        client: this process's client; a ServdError where Serve is not running.
    """

    def __init__(self, run: Callable[..., Any], delete: Callable[[str], None], client: Callable[[], "Client"]) -> None:
        self._run, self._delete, self._client = run, delete, client
        self.deployed: dict[str, Deployment] = {}
        """Name -> what this process has deployed alone, with its arguments."""

    def root_url(self) -> str:
        """URL under which applications are served.

        Raises:
            ServdError: Serve is not running.
        """
        return str(self._client().root_url)

    def deploy_alone(
        self, target: Deployment, args: tuple[Any, ...], kwargs: dict[str, Any], *, blocking: bool
    ) -> None:
        """Deploy one deployment as an application of its name."""
        warnings.warn("`deploy` is deprecated: use `servd.run`", DeprecationWarning, stacklevel=3)
        self._run(target.bind(*args, **kwargs), name=target.name, route_prefix=target.route_prefix, _blocking=blocking)
        kept = target.options()
        if args or kwargs:
            kept._init_args, kept._init_kwargs = args, kwargs
        self.deployed[target.name] = kept

    def delete_alone(self, name: str) -> None:
        """Delete what `deploy_alone` made."""
        self.deployed.pop(name, None)
        self._delete(name)

    def scale_live(self, deployment: DeploymentID, count: int, *, blocking: bool) -> None:
        """Give a live deployment so many replicas, and wait until it has them.

        Raises:
            ServdError: refused. RuntimeError: it is UNHEALTHY with them.
        """
        client = self._client()
        client.scale(deployment, count)

        def settled(status: dict[str, Any]) -> bool:
            app = status["applications"].get(deployment.app, {"deployments": {}})
            about = app["deployments"].get(
                deployment.full_name, {"standing": DeploymentStanding.UNHEALTHY, "message": ""}
            )
            if about["standing"] in (DeploymentStanding.UNHEALTHY, DeploymentStanding.DEPLOY_FAILED):
                raise RuntimeError(f"{deployment.full_name} is UNHEALTHY: {about['message'] or 'it was deleted'}")
            return bool(about["standing"] == DeploymentStanding.HEALTHY)

        if blocking:
            client.watch(settled)

    def delete_live(self, deployment: DeploymentID) -> None:
        """Delete the application of a live deployment.

        Raises:
            RuntimeError: there are other deployments in it.
        """
        others = [found.name for found, _ in self._client().live_deployments().values() if found.app == deployment.app]
        if others not in ([], [deployment.name]):
            raise RuntimeError(
                f"{deployment.name} is one of {len(others)} deployments of application {deployment.app!r}: "
                f"`servd.delete({deployment.app!r})` deletes them together"
            )
        self.delete_alone(deployment.app)

    def legacy_handle(self, name: str, *, sync: bool) -> Any:
        """A two-step handle by full name, or by the name that `deploy_alone` used."""
        if installed_process() is not None and replica_context() is not None:
            # the name was checked by `get_deployment`
            return (RayServeSyncHandle if sync else RayServeHandle)(DeploymentID(name, ""))
        return self._client().get_handle(name, sync=sync)
