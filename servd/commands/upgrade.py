"""What `upgrade` does: let the daemon become another edition of servd, and show how that goes."""

from typing import Any

from servd.commands.console import say
from servd.daemon.admin_client import AdminClient, RefusedError, UnreachableError
from servd.exceptions import DeployError, UpgradeError
from servd.ground.clock import SystemClock, block_for
from servd.ground.states import UpgradeStage

POLL_S = 5.0
AWAY_LIMIT_S = 90.0
"""How long nobody may answer, or know of the upgrade: the daemon tries another edition's controller for 60 s."""
_RETRY_S = 0.1
_NOT_FOUND = 404


def upgrade(client: AdminClient, *, wait: bool, timeout_s: float | None) -> None:
    """Ask for it; with `wait` stay until every process is replaced.

    Raises:
        UpgradeError: it is not possible, and why; or it failed, and the daemon is what it was.
        DeployError: not all is replaced in time.
    """
    client.probe()
    try:
        begun = client.upgrade()
    except RefusedError as error:
        if error.status == _NOT_FOUND:
            raise UpgradeError(
                "this daemon is of an older servd, which cannot become another one: restart it: `servd stop && servd start`"
            ) from error
        raise
    edition = begun["edition"]
    if begun["is_needed"]:
        say(f"Upgrading from servd {begun['before']} to {edition}.")
    elif _is_under_way(client.status(), edition):
        say(f"The upgrade to servd {edition} is under way.")
    else:
        say(f"The daemon runs servd {edition} already: that is what is installed where it was started from.")
        return
    if wait:
        _follow(client, edition, timeout_s)
        say(f"Everything runs servd {edition}.", "SUCC")
    else:
        say(" * Use `servd upgrade --wait` to see how it goes; it goes on by itself.")


def _is_under_way(status: dict[str, Any], edition: str) -> bool:
    state = status["upgrade"]
    is_over = state is None or state["stage"] in (UpgradeStage.DONE, UpgradeStage.FAILED)
    return not is_over and state["edition"] == edition


def _follow(client: AdminClient, edition: str, timeout_s: float | None) -> None:
    clock = SystemClock()
    deadline = None if timeout_s is None else clock.now() + timeout_s
    heard_at = clock.now()
    seen: int | None = None
    shown = ""
    while True:
        now = clock.now()
        left = POLL_S if deadline is None else min(POLL_S, deadline - now)
        if left <= 0:
            raise DeployError(
                f"not all is replaced after {timeout_s:g} s: {shown or 'nothing is known of the upgrade yet'}"
            )
        found = _progress(client, seen, left)
        state = found.get("upgrade")
        if state is None or state["edition"] != edition:
            if clock.now() - heard_at > AWAY_LIMIT_S:
                raise UpgradeError(
                    f"nothing was heard of servd {edition} for {AWAY_LIMIT_S:.0f} s; see `servd logs daemon`"
                )
            block_for(_RETRY_S)
            continue
        heard_at, seen = clock.now(), found["version"]
        if state["stage"] == UpgradeStage.FAILED:
            raise UpgradeError(f"servd {edition} did not come up, the old one goes on: {state['message']}")
        if state["stage"] == UpgradeStage.DONE:
            return
        if (text := _shown(state)) != shown:
            shown = text
            say(text)


def _progress(client: AdminClient, seen: int | None, timeout_s: float) -> dict[str, Any]:
    """Status of the daemon; empty while none of its controllers answers."""
    try:
        return client.status(seen, timeout_s)
    except UnreachableError:
        return {}
    except RefusedError as error:
        if error.status < 500:
            raise
        return {}


def _shown(state: dict[str, Any]) -> str:
    left = ", ".join(
        f"{state[kind]} {name}"
        for kind, name in (("proxies", "proxies"), ("fork_servers", "fork servers"), ("replicas", "replicas"))
        if state[kind]
    )
    text = f"left of the old version: {left or 'nothing'}"
    return f"{text}; {state['message']}" if state["message"] else text
