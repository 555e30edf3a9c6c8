"""What `servd start` does: become the daemon, or leave it in the background."""

import os
import sys

from servd.commands.console import say, warn
from servd.daemon.launch import daemon_command, log_out_notice, start_detached
from servd.daemon.tls import check_pair
from servd.ground.settings import Settings, is_default_state_dir


def begin(settings: Settings, *, detach: bool, log_to_stderr: bool) -> None:
    """The process itself, or one in the background.

    Raises:
        ServdError: the settings cannot be meant, or it does not start.
    """
    check_pair(settings.admin_tls_cert, settings.admin_tls_key, "--admin-tls")
    check_pair(settings.http_tls_cert, settings.http_tls_key, "--http-tls")
    if detach:
        daemon = start_detached(settings, log_to_stderr=log_to_stderr)
        which = "" if is_default_state_dir(settings.state_dir) else f" --state-dir {settings.state_dir}"
        say(f"The daemon runs in the background, pid {daemon.pid}; `servd stop{which}` ends it.", "SUCC")
        for place in daemon.places:
            say(place)
        if notice := log_out_notice(settings.socket_dir):
            warn(notice)
        return
    sys.stdout.flush()
    if log_to_stderr:
        # it is so without the option, unless the environment says otherwise
        os.environ["SERVD_LOG_TO_STDERR"] = "1"
    os.execv((command := daemon_command(settings))[0], command)
