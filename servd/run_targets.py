"""`run_many`: several applications at once, deployed side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from servd import api
from servd.app.options import UNSET, Unset
from servd.context import get_global_client
from servd.daemon.presence import stay
from servd.ground.absent import refuse_options
from servd.handle import RayServeSyncHandle


@dataclass(frozen=True, slots=True)
class RunTarget:
    """One application for `run_many`; the fields are arguments of `run`."""

    target: Any
    name: str = api.DEFAULT_APP
    route_prefix: str | Unset | None = UNSET
    logging_config: Any = None
    external_scaler_enabled: bool = False


def run_many(
    targets: Sequence[RunTarget],
    *,
    blocking: bool = False,
    wait_for_ingress_deployment_creation: bool = True,  # noqa: ARG001
    wait_for_applications_running: bool = True,
    _local_testing_mode: bool = False,
    **further: Any,
) -> list[RayServeSyncHandle]:
    """Deploy applications side by side and wait until all are healthy.

    Args:
        blocking: stay until Ctrl-C after that.
        wait_for_ingress_deployment_creation: no effect: a handle may be used at once.
        wait_for_applications_running: False = do not wait.

    Returns:
        Handles to their ingresses, in order.

    Raises:
        ValueError: no targets, or a name twice. Otherwise as `run`; what was deployed stays.
    """
    refuse_options("run_many", further)
    names = [target.name for target in targets]
    if not targets or len(set(names)) != len(names):
        raise ValueError(f"run_many needs targets of different names, got {', '.join(names) or 'none'}")
    handles = [
        api.run(
            one.target,
            name=one.name,
            route_prefix=one.route_prefix,
            logging_config=one.logging_config,
            external_scaler_enabled=one.external_scaler_enabled,
            _blocking=False,
            _local_testing_mode=_local_testing_mode,
        )
        for one in targets
    ]
    client = None if _local_testing_mode else get_global_client()
    if wait_for_applications_running and client is not None:
        for name in names:
            client.wait_until_healthy(name)
    if blocking:
        stay(None if client is None else client.admin)
    return handles
