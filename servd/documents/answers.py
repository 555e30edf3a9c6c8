"""Shapes of the answers of GET V1 status and GET V2, as clients of release 2.5 read them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from servd.config import DeploymentMode
from servd.ground.states import ApplicationStatus, DeploymentStatus, DeployMode, ProxyStatus, ReplicaState


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)


class AppStatus(_Exact):
    """`app_status` of GET V1 status."""

    status: ApplicationStatus
    message: str = ""
    deployment_timestamp: float = 0


class DeploymentStatusEntry(_Exact):
    """Item of `deployment_statuses`."""

    name: str
    status: DeploymentStatus
    message: str = ""


class ServeStatusSchema(_Exact):
    """GET V1 status."""

    name: str = ""
    app_status: AppStatus
    deployment_statuses: list[DeploymentStatusEntry] = Field(default_factory=list)


class ServeActorDetails(_Open):
    """Identity of one process; may hold further keys."""

    node_id: str | None = None
    node_ip: str | None = None
    actor_id: str | None = None
    actor_name: str | None = None
    worker_id: str | None = None
    log_file_path: str | None = None


class HTTPProxyDetails(ServeActorDetails):
    """The proxies of one host."""

    status: ProxyStatus


class ReplicaDetails(ServeActorDetails):
    """One replica."""

    replica_id: str
    state: ReplicaState
    pid: int | None = None
    start_time_s: float


class DeploymentDetails(_Exact):
    """One deployment with its effective options."""

    name: str
    status: DeploymentStatus
    message: str
    deployment_config: dict[str, Any]
    replicas: list[ReplicaDetails]


class ApplicationDetails(_Exact):
    """One application."""

    name: str
    route_prefix: str | None
    docs_path: str | None
    status: ApplicationStatus
    message: str
    last_deployed_time_s: float
    deployed_app_config: dict[str, Any] | None
    deployments: dict[str, DeploymentDetails]


class ServeInstanceDetails(_Exact):
    """GET V2."""

    controller_info: ServeActorDetails
    proxy_location: DeploymentMode | None = None
    http_options: dict[str, Any] | None = None
    http_proxies: dict[str, HTTPProxyDetails] | None = None
    deploy_mode: DeployMode
    applications: dict[str, ApplicationDetails]
