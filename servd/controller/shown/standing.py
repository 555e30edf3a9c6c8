"""How applications and deployments stand in the words of today's Ray Serve, which has more of them than 2.5.

An application's status of 2.5 stays what its deploy came to; its standing is that of its deployments now.
"""

from collections.abc import Iterable

from servd.controller.plan.facts import ApplicationFact, DeploymentFact
from servd.documents.control_plane import DeploymentView
from servd.ground.states import (
    ApplicationStanding,
    ApplicationStatus,
    DeploymentStanding,
    DeploymentStatus,
    StatusTrigger,
)

_RUNNING = ApplicationStatus.RUNNING.value
_FAILED_STARTS = "REPLICA_STARTUP_FAILED"


def status_trigger(status: DeploymentStatus, app: ApplicationFact, fact: DeploymentFact | None) -> StatusTrigger:
    """How the deployment came to its status of 2.5."""
    if fact is None or app.deleting:
        return StatusTrigger.DELETING
    if status is DeploymentStatus.UNHEALTHY:
        has_not_started = fact.trigger == _FAILED_STARTS
        return StatusTrigger.REPLICA_STARTUP_FAILED if has_not_started else StatusTrigger.HEALTH_CHECK_FAILED
    if fact.trigger == StatusTrigger.AUTOSCALING:
        if status is DeploymentStatus.UPDATING:
            return StatusTrigger.AUTOSCALING
        return StatusTrigger.UPSCALE_COMPLETED if _has_grown(fact) else StatusTrigger.DOWNSCALE_COMPLETED
    if status is DeploymentStatus.HEALTHY and fact.trigger != StatusTrigger.UNSPECIFIED:
        return StatusTrigger.CONFIG_UPDATE_COMPLETED
    known = fact.trigger in (StatusTrigger.CONFIG_UPDATE_STARTED, StatusTrigger.UNSPECIFIED)
    return StatusTrigger(fact.trigger) if known else StatusTrigger.UNSPECIFIED


def deployment_standing(
    status: DeploymentStatus, app: ApplicationFact, fact: DeploymentFact | None, *, pinned: int | None, running: int
) -> DeploymentStanding:
    """The standing of a deployment.

    Args:
        status: its status of 2.5.
        pinned: count set by `scale`, None if none is.
        running: replicas that run.
    """
    match status:
        case DeploymentStatus.HEALTHY:
            return DeploymentStanding.HEALTHY
        case DeploymentStatus.UNHEALTHY:
            is_new = fact is not None and fact.trigger == _FAILED_STARTS and app.settled != _RUNNING
            return DeploymentStanding.DEPLOY_FAILED if is_new else DeploymentStanding.UNHEALTHY
    if fact is None or app.deleting:
        return DeploymentStanding.UPDATING
    if fact.trigger == StatusTrigger.AUTOSCALING:
        return DeploymentStanding.UPSCALING if _has_grown(fact) else DeploymentStanding.DOWNSCALING
    # the build and the config are those that ran: only the count is another one
    if pinned is not None and app.settled == _RUNNING:
        return DeploymentStanding.UPSCALING if running < pinned else DeploymentStanding.DOWNSCALING
    return DeploymentStanding.UPDATING


def _has_grown(fact: DeploymentFact) -> bool:
    return not fact.decisions or fact.decisions[-1].after > fact.decisions[-1].before


def application_standing(
    status: ApplicationStatus, app: ApplicationFact, deployments: Iterable[DeploymentView]
) -> tuple[ApplicationStanding, str]:
    """The standing of an application and its reason, "" where none is needed."""
    standings = {deployment.bare_name: deployment.standing for deployment in deployments}
    if status is ApplicationStatus.RUNNING:
        ill = [name for name, standing in standings.items() if standing is DeploymentStanding.UNHEALTHY]
        return (ApplicationStanding.UNHEALTHY, f"unhealthy: {', '.join(ill)}") if ill else (
            ApplicationStanding.RUNNING, app.message
        )  # fmt: skip
    if status is ApplicationStatus.DEPLOY_FAILED and _is_latest_build(app):
        well = all(standing is DeploymentStanding.HEALTHY for standing in standings.values())
        if standings and well:
            return ApplicationStanding.RUNNING, ""
    return ApplicationStanding(status.value), app.message


def _is_latest_build(app: ApplicationFact) -> bool:
    """Whether what serves was built for the latest wish."""
    return app.active_goal is not None and app.active_goal.deploy_id == app.goal.deploy_id
