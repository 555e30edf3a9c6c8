"""What has become of a goal, and of the one that a daemon started with."""

from collections.abc import Collection

from servd.controller.plan.goal import Goal
from servd.controller.plan.observed import Observed
from servd.controller.shown.status import application_status
from servd.documents.control_plane import InstanceView
from servd.ground.states import ApplicationStatus, ProxyLocation, RevisionOutcome


def is_serving(view: InstanceView, wanted: Collection[str]) -> bool:
    """Whether a daemon that has just started does what it can: the data plane listens, and every application is settled.

    Args:
        wanted: names of the applications of the goal it started with.
    """
    is_open = view.http.listening or view.http.location == ProxyLocation.NO_SERVER
    there = {app.name for app in view.applications}
    return is_open and there.issuperset(wanted) and all(app.status in _SETTLED for app in view.applications)


_SETTLED = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING)


def outcome_of(goal: Goal, observed: Observed) -> RevisionOutcome:
    """What has become of the goal: failed as soon as an application that it deployed failed, ran once all of them run.

    One that deployed none (it took an application away) is judged by those that stayed.
    """
    deployed = [app for app in goal.applications if app.deploy_id == goal.revision] or list(goal.applications)
    facts = [observed.applications.get(app.name) for app in deployed]
    states = [
        application_status(fact) if fact is not None and fact.goal.deploy_id == app.deploy_id else None
        for fact, app in zip(facts, deployed, strict=True)
    ]
    if ApplicationStatus.DEPLOY_FAILED in states:
        return RevisionOutcome.FAILED
    is_running = bool(states) and all(state is ApplicationStatus.RUNNING for state in states)
    return RevisionOutcome.RAN if is_running else RevisionOutcome.UNDECIDED
