"""A deployment that runs, as `get_deployment` gives it: its options are here, its code is not."""

from collections.abc import Mapping
from typing import Any, NoReturn

from servd.app.deployment import Deployment, make_deployment
from servd.app.verbs import verbs
from servd.ground.ids import DeploymentID

_SHOWN = (
    "num_replicas",
    "max_concurrent_queries",
    "user_config",
    "autoscaling_config",
    "graceful_shutdown_wait_loop_s",
    "graceful_shutdown_timeout_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "ray_actor_options",
)
"""Options that a live deployment shows."""


class LiveDeployment(Deployment):
    """Made by `live_deployment`."""

    _id: DeploymentID
    _as_it_runs: dict[str, Any]

    def bind(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"the code of {self.name} is in its replicas, not here: bind the deployment that it was made of"
        )

    def deploy(self, *init_args: Any, _blocking: bool = True, **init_kwargs: Any) -> None:
        """Deprecated: give it as many replicas as `options(num_replicas=...)` says.

        Raises:
            RuntimeError: something else is to change, for which its code would be needed.
        """
        wanted = self.config.given()
        changed = {key for key, value in wanted.items() if self._as_it_runs.get(key) != value}
        if changed != {"num_replicas"} or init_args or init_kwargs or self._func_or_class is not _code_elsewhere:
            raise RuntimeError(
                f"the code of {self.name} is in its replicas, not here, where only its num_replicas can be changed: for all else "
                "deploy it again from where its code is, or put a document in force"
            )
        verbs().scale_live(self._id, self.num_replicas, blocking=_blocking)

    def delete(self) -> None:
        """Deprecated: delete its application.

        Raises:
            RuntimeError: there are other deployments in it.
        """
        verbs().delete_live(self._id)


def live_deployment(
    deployment: DeploymentID, full_name: str, config: Mapping[str, Any], route_prefix: str | None
) -> LiveDeployment:
    """What shows the options of a live deployment. route_prefix: of its application if it is the ingress, else None."""
    known = {key: value for key, value in config.items() if key in _SHOWN and value is not None}
    if known.get("autoscaling_config") is not None:
        known.pop("num_replicas", None)
    live = object.__new__(LiveDeployment)
    live.__dict__.update(make_deployment(_code_elsewhere, known).__dict__)
    # two names and what joins them, or one from before there was a rule for names
    live._name = full_name
    live._route_prefix = route_prefix
    live._id = deployment
    live._as_it_runs = live.config.given()
    return live


def _code_elsewhere() -> NoReturn:
    raise RuntimeError("the code of a live deployment is in its replicas, not here")
