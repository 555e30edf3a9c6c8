"""What an autoscaling policy of user code is told. No models: whoever asks one loads this."""

from collections.abc import Mapping
from typing import Any

from servd.ground.ids import DeploymentID, ReplicaID


class AutoscalingContext:
    """State of one deployment at the moment of a decision. Source: Ray Serve 2.60, letter by letter.

    Attributes:
        deployment_id, deployment_name, app_name: which one.
        current_num_replicas, running_replicas: replicas that run now, and their ids.
        target_num_replicas: the count in force.
        total_num_requests: requests that run and wait, over `look_back_period_s` by `aggregation_function`.
        total_queued_requests: requests that wait now. total_running_requests: the difference, 0 at least.
        aggregated_metrics, raw_metrics: custom metrics by name: {}, since servd collects none.
        capacity_adjusted_min_replicas, capacity_adjusted_max_replicas: the bounds, at the `target_capacity`.
        policy_state: what the policy returned last, {} at first.
        last_scale_up_time, last_scale_down_time: wall time, seconds; None = not yet.
        current_time: wall time, seconds.
        config: the deployment's `AutoscalingConfig`.
    """

    def __init__(
        self,
        deployment_id: DeploymentID,
        deployment_name: str,
        app_name: str | None,
        current_num_replicas: int,
        target_num_replicas: int,
        running_replicas: list[ReplicaID],
        total_num_requests: float,
        total_queued_requests: float | None = 0.0,
        aggregated_metrics: Mapping[str, Any] | None = None,
        raw_metrics: Mapping[str, Any] | None = None,
        capacity_adjusted_min_replicas: int = 0,
        capacity_adjusted_max_replicas: int = 1,
        policy_state: dict[str, Any] | None = None,
        last_scale_up_time: float | None = None,
        last_scale_down_time: float | None = None,
        current_time: float | None = None,
        config: Any = None,
    ) -> None:
        self.deployment_id = deployment_id
        self.deployment_name = deployment_name
        self.app_name = app_name
        self.current_num_replicas = current_num_replicas
        self.target_num_replicas = target_num_replicas
        self.running_replicas = running_replicas
        self.total_num_requests = total_num_requests
        self.total_queued_requests = total_queued_requests
        self.aggregated_metrics = {} if aggregated_metrics is None else aggregated_metrics
        self.raw_metrics = {} if raw_metrics is None else raw_metrics
        self.capacity_adjusted_min_replicas = capacity_adjusted_min_replicas
        self.capacity_adjusted_max_replicas = capacity_adjusted_max_replicas
        self.policy_state: dict[str, Any] = {} if policy_state is None else policy_state
        self.last_scale_up_time = last_scale_up_time
        self.last_scale_down_time = last_scale_down_time
        self.current_time = current_time
        self.config = config

    @property
    def total_running_requests(self) -> float:
        """Requests that run, over the window."""
        return max(0.0, self.total_num_requests - (self.total_queued_requests or 0.0))

    def __repr__(self) -> str:
        return (
            f"AutoscalingContext({self.deployment_id}, replicas={self.current_num_replicas}, "
            f"target={self.target_num_replicas}, requests={self.total_num_requests:g})"
        )


def context_of(told: Mapping[str, Any], config: Any, state: dict[str, Any], wall_time: float) -> AutoscalingContext:
    """The context behind what the controller says.

    Args:
        told: one of `PolicyAsk.contexts`, as the controller writes them (`plan/scaling.py`).
        config: the deployment's `AutoscalingConfig`.
        wall_time: now, seconds.
    """
    deployment = DeploymentID(told["deployment"], told["app"])
    ages = (told["last_scale_up_s"], told["last_scale_down_s"])
    last_up, last_down = (None if age is None else wall_time - age for age in ages)
    return AutoscalingContext(
        deployment,
        deployment.name,
        deployment.app,
        told["current_num_replicas"],
        told["target_num_replicas"],
        [ReplicaID.of_tag(deployment, tag) for tag in told["running_replicas"]],
        told["total_num_requests"],
        told["total_queued_requests"],
        capacity_adjusted_min_replicas=told["min_replicas"],
        capacity_adjusted_max_replicas=told["max_replicas"],
        policy_state=dict(state),
        last_scale_up_time=last_up,
        last_scale_down_time=last_down,
        current_time=wall_time,
        config=config,
    )
