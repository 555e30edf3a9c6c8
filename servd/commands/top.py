"""What `servd top` does."""

import sys
from datetime import datetime
from typing import Any

from servd.commands.console import say, screen_on
from servd.commands.figures import DISPENSABLE, HEAD, decision_lines, figure_rows, show_figures, size
from servd.commands.operations import TABLE, show
from servd.daemon.admin_client import AdminClient, RefusedError, UnreachableError
from servd.exceptions import ConfigError
from servd.ground.clock import SystemClock, block_for


def watch(client: AdminClient, target: str, form: str, *, order: str, interval_s: float) -> None:
    """Show figures again and again until Ctrl-C; once, where no person looks or another form is wanted.

    Args:
        target: APP, APP/DEPLOYMENT or "" for all.

    Raises:
        ConfigError: nothing of that name is deployed.
    """
    client.probe()
    app, _, deployment = target.partition("/")
    figures = client.figures(app, deployment)
    if target and not figures["applications"]:
        raise ConfigError(f"nothing is deployed that is called {target!r}; `servd status` lists what is")
    if form != TABLE:
        show(figures, form)
        return
    screen = screen_on(sys.stdout)
    if screen is None:
        if figures["applications"]:
            show_figures(figures, order)
        else:
            say("There are no applications running on this servd instance.")
        return
    trouble = ""
    try:
        while True:
            rows = figure_rows(figures, order)
            screen.update(_headline(figures, trouble), HEAD, rows, decision_lines(figures), DISPENSABLE)
            block_for(interval_s)
            try:
                figures, trouble = client.figures(app, deployment), ""
            except (UnreachableError, RefusedError) as error:
                # the controller may be about to be replaced
                trouble = str(error)
    except KeyboardInterrupt:
        pass
    finally:
        screen.close()


def _headline(figures: dict[str, Any], trouble: str) -> str:
    found = [one for app in figures["applications"].values() for one in app["deployments"].values()]
    clock = datetime.fromtimestamp(SystemClock().wall_time()).strftime("%H:%M:%S")
    replicas = sum(one["running_replicas"] for one in found)
    rate = sum(one["requests_per_s"] or 0.0 for one in found)
    memory = size(sum(one["memory_bytes"] for one in found))
    cpu = sum(one["cpu_share"] for one in found)
    counts = f"deployments {len(found)}, replicas {replicas}, requests/s {rate:.1f}"
    return f"{clock}  {trouble or f'{counts}, CPU {100 * cpu:.0f}%, memory {memory}'}"
