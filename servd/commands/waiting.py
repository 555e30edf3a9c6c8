"""Waiting until what was deployed runs, with what is shown meanwhile."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from servd.commands.console import ProgressRow, progress_on, progress_rows, say, without_colours
from servd.daemon.admin_client import AdminClient
from servd.exceptions import DeployError
from servd.ground.clock import SystemClock

POLL_S = 5.0


def wait_until_running(client: AdminClient, revision: int, apps: Iterable[str], timeout_s: float | None) -> None:
    """Show progress until each of `apps` is RUNNING as a revision wants it, or has failed.

    Raises:
        DeployError: see `until_running`; or a later revision wants another application under a name of these.
    """
    names = tuple(apps)
    seen: int | None = None

    def look(wait_s: float) -> Look:
        nonlocal seen
        status = client.status() if seen is None else client.status(seen=seen, timeout_s=wait_s)
        seen = status["version"]
        replaced: dict[str, str] = {}
        if status["revision"] > revision:
            ours, current = client.revision(revision), client.revision(status["revision"])
            replaced = dict(_replaced(status["applications"], names, ours, current))
        waiting, failures = _unfinished(status["applications"], [name for name in names if name not in replaced])
        return Look(progress_rows(status, names), waiting, [*replaced.values(), *failures])

    until_running(names, timeout_s, look)


@dataclass(frozen=True, slots=True)
class Look:
    """What is deployed, seen once. waiting: what is still to come. failures: what will not."""

    rows: list[ProgressRow]
    waiting: list[str]
    failures: list[str]


def until_running(names: Iterable[str], timeout_s: float | None, look: Callable[[float], Look]) -> None:
    """Show progress until nothing is waited for any more.

    Args:
        look: gets how long it may wait for news, seconds, 0 at first.

    Raises:
        DeployError: something failed, or the time is over; says what.
    """
    clock = SystemClock()
    deadline = None if timeout_s is None else clock.now() + timeout_s
    progress = progress_on(sys.stdout)
    left = 0.0
    try:
        while True:
            seen = look(left)
            progress.update(seen.rows)
            failures = list(seen.failures)
            if not seen.waiting:
                break
            left = POLL_S if deadline is None else min(POLL_S, deadline - clock.now())
            if left <= 0:
                failures.append(f"not running after {timeout_s:g} s: {'; '.join(seen.waiting)}")
                break
    finally:
        progress.close()
    if failures:
        raise DeployError("\n".join(failures))
    say(f"Running: {', '.join(names) or 'no applications'}.", "SUCC")


def _unfinished(apps: dict[str, Any], names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names that are still deployed, and what is wrong with those that failed."""
    waiting, failures = [], []
    for name in names:
        app = apps.get(name)
        if app is None or app["status"] == "DELETING":
            failures.append(f"application {name!r} was removed while it was deployed")
        elif app["status"] == "DEPLOY_FAILED":
            message = without_colours(app["message"]).strip()
            is_named = f"application {name} failed" in message
            failures.append(message if is_named else f"application {name!r} failed to deploy: {message}")
        elif app["status"] != "RUNNING":
            waiting.append(name)
    return waiting, failures


def _replaced(
    apps: dict[str, Any], names: Iterable[str], ours: dict[str, Any], current: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Names under which a later revision wants something else than ours, and what to say of them."""
    for name in names:
        if name not in apps or apps[name]["status"] == "DELETING":
            continue
        before, now = ours["applications"].get(name), current["applications"].get(name)
        # an application without a config is told from another by its time alone
        is_other = before != now if before or now else apps[name]["last_deployed_time_s"] > ours["at"]
        if is_other:
            yield (
                name,
                f"application {name!r} was deployed anew meanwhile: revision {current['revision']} is in force, not "
                f"{ours['revision']} of this deploy; `servd history` tells who sent it",
            )
