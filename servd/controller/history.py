"""Revisions of the goal as people look at them, and what must be there to go back to one."""

import logging
import os
from collections.abc import Collection, Iterable

from servd.controller.goal_store import GoalStore, Revision
from servd.controller.plan.goal import Goal
from servd.documents.control_plane import RevisionView
from servd.exceptions import ConfigError, UnknownNameError
from servd.ground.states import RevisionOutcome
from servd.wire.build_messages import BuildOrder

logger = logging.getLogger(__name__)


def latest(store: GoalStore, limit: int) -> tuple[RevisionView, ...]:
    """The latest revisions, newest first, `limit` at most."""
    rows = store.revisions()[-limit:] if limit > 0 else []
    return tuple(_view(row, goal_of(store, row.revision)) for row in reversed(rows))


def tell_change(revision: int, previous: int, origin: str) -> None:
    """Leave the audit line of a change."""
    logger.info("audit revision=%d previous=%d origin=%s", revision, previous, origin or "-")


def tell_since(store: GoalStore, known: int) -> None:
    """Leave the audit lines of what a controller saved as it was killed, before it could tell: revisions after `known`."""
    for row in store.revisions():
        if row.revision > known:
            tell_change(row.revision, row.revision - 1, row.origin)


def view_of(store: GoalStore, number: int) -> RevisionView:
    """One revision.

    Raises:
        UnknownNameError: there is none of that number.
    """
    goal = goal_of(store, number)
    return next(_view(row, goal) for row in store.revisions() if row.revision == number)


def goal_of(store: GoalStore, number: int) -> Goal:
    """The goal of a revision as it was accepted.

    Raises:
        UnknownNameError: there is none of that number.
    """
    goal = store.goal_of(number)
    if goal is None:
        last = store.latest().revision
        there = f"there are 1 to {last}" if last else "there is none yet"
        if store.is_stand_in:
            there = f"only {last} is known, since {store.trouble()}"
        raise UnknownNameError(f"there is no revision {number}: {there}")
    return goal


def check_code(goal: Goal, code_dir: str) -> None:
    """Check that the code which a goal was accepted with is still there.

    Raises:
        ConfigError: names what is gone.
    """
    for app in goal.applications:
        for directory, snapshot in app.snapshots.items():
            if not os.path.isdir(snapshot):
                raise ConfigError(
                    f"revision {goal.revision}: the snapshot of {directory} of application {app.name!r} is gone: {snapshot}"
                )
        pickled = f"{code_dir}/{app.document.application_hash}.pkl"
        if app.document.application_hash and not os.path.isfile(pickled):
            raise ConfigError(f"revision {goal.revision}: the code of application {app.name!r} is gone: {pickled}")


def last_that_ran(store: GoalStore, code_dir: str) -> int | None:
    """The latest revision before the current one that ran, wants something else, and whose code is there; None without one."""
    current = store.latest()
    for row in reversed(store.revisions()):
        if row.revision >= current.revision or row.outcome is not RevisionOutcome.RAN:
            continue
        goal = goal_of(store, row.revision)
        if _wish(goal) != _wish(current) and _has_code(goal, code_dir):
            return row.revision
    return None


def _wish(goal: Goal) -> tuple[object, ...]:
    """What a rollback would bring back."""
    applications = [(app.document, app.snapshots) for app in goal.applications]
    return goal.running, goal.mode, goal.asked, goal.logging_config, goal.target_capacity, applications


def _has_code(goal: Goal, code_dir: str) -> bool:
    try:
        check_code(goal, code_dir)
    except ConfigError:
        return False
    return True


def goals_within(store: GoalStore, keep: int, orphaned: Collection[str]) -> list[Goal]:
    """Goals of the latest `keep` revisions, and of all that have an application of which replicas live whose build is unknown."""
    numbers = [row.revision for row in store.revisions()]
    latest_ones = set(numbers[-keep:] if keep > 0 else ())
    found = [(number, goal_of(store, number)) for number in numbers if orphaned or number in latest_ones]
    return [goal for number, goal in found if number in latest_ones or any(goal.application(name) for name in orphaned)]


def needed_code(goals: Iterable[Goal], orders: Iterable[BuildOrder]) -> set[str]:
    """Names of the snapshots and shipped applications that goals and living builds are made of."""
    paths = [path for goal in goals for app in goal.applications for path in app.snapshots.values()]
    paths += [f"{app.document.application_hash}.pkl" for goal in goals for app in goal.applications]
    for order in orders:
        paths += [order.application_file, *order.origins]
    return {os.path.basename(path) for path in paths}


def _view(row: Revision, goal: Goal) -> RevisionView:
    return RevisionView(
        revision=row.revision,
        at=row.at,
        origin=row.origin,
        running=goal.running,
        mode=goal.mode,
        http=goal.asked,
        outcome=row.outcome,
        applications={app.name: app.document.stored for app in goal.applications},
        logging_config=goal.logging_config,
        target_capacity=goal.target_capacity,
    )
