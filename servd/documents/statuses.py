"""What `servd.status()` and `client.get_serve_status()` give: values to read, from the daemon's status."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from servd.ground.states import (
    ApplicationStanding,
    ApplicationStatus,
    DeploymentStanding,
    DeploymentStatus,
    ProxyStatus,
)


@dataclass(frozen=True, slots=True)
class DeploymentOverview:
    """One deployment. replica_states: state -> number of replicas in it."""

    status: DeploymentStanding
    status_trigger: str
    replica_states: dict[str, int]
    message: str


@dataclass(frozen=True, slots=True)
class ApplicationOverview:
    """One application, as it is now. deployments: by bare name."""

    status: ApplicationStanding
    message: str
    last_deployed_time_s: float
    deployments: dict[str, DeploymentOverview] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServeStatus:
    """The whole instance; both maps are empty when Serve is not running. proxies: by node id. target_capacity: percent of every
    count, None = all."""

    proxies: dict[str, ProxyStatus] = field(default_factory=dict)
    applications: dict[str, ApplicationOverview] = field(default_factory=dict)
    target_capacity: float | None = None


@dataclass(frozen=True, slots=True)
class ApplicationStatusInfo:
    """`app_status` of release 2.5."""

    status: ApplicationStatus
    message: str = ""
    deployment_timestamp: float = 0.0


@dataclass(frozen=True, slots=True)
class DeploymentStatusInfo:
    """One of `deployment_statuses` of release 2.5; name: full."""

    name: str
    status: DeploymentStatus
    message: str = ""


@dataclass(frozen=True, slots=True)
class StatusOverview:
    """Status of one application, as release 2.5 shows it."""

    name: str
    app_status: ApplicationStatusInfo
    deployment_statuses: list[DeploymentStatusInfo] = field(default_factory=list)

    def get_deployment_status(self, name: str) -> DeploymentStatusInfo | None:
        """Status of the deployment of that full name, None when there is none."""
        return next((item for item in self.deployment_statuses if item.name == name), None)


def serve_status(status: dict[str, Any]) -> ServeStatus:
    """The overview of a daemon's status."""
    if not status["running"]:
        return ServeStatus()
    ranks = (ProxyStatus.HEALTHY, ProxyStatus.STARTING, ProxyStatus.UNHEALTHY)
    states = [ProxyStatus(proxy["status"]) for proxy in status["proxies"]]
    proxies = {status["controller_info"]["node_id"]: min(states, key=ranks.index)} if states else {}
    apps = {name: _application(app) for name, app in status["applications"].items()}
    return ServeStatus(proxies, apps, status.get("target_capacity"))


def _application(app: dict[str, Any]) -> ApplicationOverview:
    return ApplicationOverview(
        # a daemon of an edition before this one says nothing of it
        ApplicationStanding(app.get("standing", app["status"])),
        app.get("standing_message", app["message"]),
        app["last_deployed_time_s"],
        {item["name"]: _deployment(item) for item in app["deployments"].values()},
    )


def _deployment(item: dict[str, Any]) -> DeploymentOverview:
    counts = Counter(str(replica["state"]) for replica in item["replicas"])
    standing = DeploymentStanding(item.get("standing", item["status"]))
    return DeploymentOverview(standing, item["status_trigger"], dict(counts), item["message"])


def application_status(name: str, status: dict[str, Any]) -> StatusOverview:
    """Status of one application; NOT_STARTED for an unknown one."""
    app = status["applications"].get(name)
    if app is None:
        message = f"application {name!r} does not exist"
        return StatusOverview(name, ApplicationStatusInfo(ApplicationStatus.NOT_STARTED, message))
    about = ApplicationStatusInfo(ApplicationStatus(app["status"]), app["message"], app["last_deployed_time_s"])
    return StatusOverview(
        name,
        about,
        [
            DeploymentStatusInfo(full, DeploymentStatus(item["status"]), item["message"])
            for full, item in app["deployments"].items()
        ],
    )


def why_failed(app: dict[str, Any]) -> str:
    """What the status says of an application that could not be deployed, and of its deployments."""
    texts = [app["message"]]
    texts += [
        f"{name} is UNHEALTHY: {deployment['message']}"
        for name, deployment in app["deployments"].items()
        # of a failed deploy, the application's message quotes them already
        if deployment["status"] == "UNHEALTHY"
        and (not deployment["message"] or deployment["message"] not in app["message"])
    ]
    return "\n".join(text for text in texts if text)
