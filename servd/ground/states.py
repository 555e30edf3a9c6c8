"""States of applications, deployments, replicas and proxies, as they appear on the wire.

Source: Ray Serve REST API 2.5.
"""

from enum import StrEnum


class RevisionOutcome(StrEnum):
    """What became of a revision of the goal. UNDECIDED: under way, replaced before it was settled, or empty."""

    RAN = "ran"
    FAILED = "failed"
    UNDECIDED = "undecided"


class ApplicationStatus(StrEnum):
    """Status of an application. RUNNING and DEPLOY_FAILED stay until the next deploy."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    DELETING = "DELETING"


class DeploymentStatus(StrEnum):
    """Status of a deployment."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class ApplicationStanding(StrEnum):
    """Status of an application in today's Ray Serve: as it is now, also long after it was deployed."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStanding(StrEnum):
    """Status of a deployment in today's Ray Serve."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UPSCALING = "UPSCALING"
    DOWNSCALING = "DOWNSCALING"


class StatusTrigger(StrEnum):
    """How a deployment came to its status, in the words of today's Ray Serve. UNSPECIFIED: it got well again by itself."""

    UNSPECIFIED = "UNSPECIFIED"
    CONFIG_UPDATE_STARTED = "CONFIG_UPDATE_STARTED"
    CONFIG_UPDATE_COMPLETED = "CONFIG_UPDATE_COMPLETED"
    UPSCALE_COMPLETED = "UPSCALE_COMPLETED"
    DOWNSCALE_COMPLETED = "DOWNSCALE_COMPLETED"
    AUTOSCALING = "AUTOSCALING"
    REPLICA_STARTUP_FAILED = "REPLICA_STARTUP_FAILED"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    DELETING = "DELETING"


class ReplicaState(StrEnum):
    """State of a replica, in the order in which replicas are listed."""

    STARTING = "STARTING"
    UPDATING = "UPDATING"
    RECOVERING = "RECOVERING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"


class ReplicaPhase(StrEnum):
    """What a replica says of itself in its reports."""

    STARTING = "starting"
    RUNNING = "running"
    UPDATING = "updating"
    DRAINING = "draining"
    FAILED = "failed"


class ProxyStatus(StrEnum):
    """Status of a proxy."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class DeployMode(StrEnum):
    """Which REST version owns the goal."""

    UNSET = "UNSET"
    SINGLE_APP = "SINGLE_APP"
    MULTI_APP = "MULTI_APP"


class ProxyLocation(StrEnum):
    """Where proxies run. On one host HeadOnly and EveryNode mean the same."""

    NO_SERVER = "NoServer"
    HEAD_ONLY = "HeadOnly"
    EVERY_NODE = "EveryNode"
    FIXED_NUMBER = "FixedNumber"


class UpgradeStage(StrEnum):
    """How far a daemon's change to another edition of servd is: what is being replaced, or how it ended."""

    PROXIES = "REPLACING_PROXIES"
    REPLICAS = "REPLACING_REPLICAS"
    DONE = "DONE"
    FAILED = "FAILED"


ROUTABLE = frozenset({ReplicaState.RUNNING, ReplicaState.UPDATING})
"""Replicas in these states receive traffic."""

SERVING = ROUTABLE | {ReplicaState.RECOVERING}
"""Replicas in these states are not known to take no requests: one that served may not have reported to a new controller yet."""
