"""The systemd unit of a daemon."""

import os
import pwd
import shutil
import sys
from collections.abc import Sequence

from servd.daemon.life import LEFTOVER_DRAIN_S, STOP_TIMEOUT_S
from servd.exceptions import ConfigError

_STOP_MARGIN_S = 10.0

_UNIT = """\
[Unit]
Description=servd: serve Python applications
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
# the daemon ends its processes itself; what is left at the limit is killed
KillMode=mixed
TimeoutStopSec={stop_s:.0f}
# ready means that the last goal is serving again: models may take long to load
TimeoutStartSec=infinity
# one replica that needs too much memory shall not end all others
OOMPolicy=continue
Restart=on-failure
RestartSec=1
{account}Environment=SERVD_LOG_TO_STDERR=1
LimitNOFILE=1048576
NoNewPrivileges=true

[Install]
WantedBy={target}
"""


def unit(state_dir: str, options: Sequence[str], *, user: str | None) -> str:
    """Text of the unit.

    Args:
        options: further options of `servd start`.
        user: account of a system unit; None gives a unit for `systemctl --user`.

    Raises:
        ConfigError: there is no such account.
    """
    if user is not None:
        _account(user)
    found = shutil.which("servd")
    program = [found] if found else [sys.executable, "-P", "-m", "servd"]
    command = [*program, "start", "--state-dir", state_dir, *options]
    return _UNIT.format(
        command=" ".join(quoted(word) for word in command),
        stop_s=STOP_TIMEOUT_S + LEFTOVER_DRAIN_S + _STOP_MARGIN_S,
        account=f"User={user}\n" if user else "",
        target="multi-user.target" if user else "default.target",
    )


def state_dir_of_user(user: str) -> str:
    """Where a daemon of that account keeps its state; what the environment of this process says is not about it.

    Raises:
        ConfigError: there is no such account.
    """
    return os.path.join(_account(user).pw_dir, ".local", "state", "servd")


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise ConfigError(f"there is no user {user!r} on this host: `--user` takes the name of an account") from None


def quoted(word: str) -> str:
    """One word of a command line as systemd reads it."""
    plain = word.replace("%", "%%").replace("$", "$$")
    if plain and not set(plain) & set(" \t\"'\\;"):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
