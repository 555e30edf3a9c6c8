"""What GET V2 answers, as Python objects: in the dialect of 2.5 or in today's, whichever port was asked.

`answers` and `rest.today_shapes` say exactly what either dialect holds; what a key is there, it is here.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from servd.documents.answers import HTTPProxyDetails, ServeActorDetails
from servd.ground.states import ApplicationStanding, DeploymentStanding, DeployMode, StatusTrigger


class _Either(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class Shown(BaseModel):
    """A part of a document, or options in force: its keys as attributes, or as keys."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    def __getitem__(self, key: str) -> Any:
        return (self.model_extra or {})[key]


class ReplicaDetails(ServeActorDetails):
    """One replica; one that is gone is STOPPED."""

    replica_id: str
    state: str
    pid: int | None = None
    start_time_s: float


class DeploymentDetails(_Either):
    """One deployment with its effective options. In today's dialect its name is bare."""

    name: str
    status: DeploymentStanding
    status_trigger: StatusTrigger | None = None
    message: str
    deployment_config: Shown
    target_num_replicas: int | None = None
    required_resources: dict[str, float] = Field(default_factory=dict)
    replicas: list[ReplicaDetails]
    recent_dead_replicas: list[ReplicaDetails] = Field(default_factory=list)
    autoscaling_detail: dict[str, Any] | None = None


class ApplicationDetails(_Either):
    """One application."""

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationStanding
    message: str
    last_deployed_time_s: float
    deployed_app_config: Shown | None = None
    source: str | None = None
    deployments: dict[str, DeploymentDetails]
    external_scaler_enabled: bool = False
    deployment_topology: dict[str, Any] | None = None


class ServeInstanceDetails(_Either):
    """GET V2. `deploy_mode` and `http_proxies` are of 2.5, for the latter today has `proxies`."""

    controller_info: ServeActorDetails
    proxy_location: str | None = None
    http_options: Shown | None = None
    grpc_options: Shown | None = None
    http_proxies: dict[str, HTTPProxyDetails] | None = None
    proxies: dict[str, HTTPProxyDetails] = Field(default_factory=dict)
    deploy_mode: DeployMode | None = None
    applications: dict[str, ApplicationDetails]
    target_capacity: float | None = None
    target_groups: list[dict[str, Any]] = Field(default_factory=list)
    controller_health_metrics: dict[str, Any] | None = None
    restores_unset_config_options: bool | None = None
