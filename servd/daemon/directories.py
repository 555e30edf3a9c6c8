"""The directories of a daemon as it finds or makes them when it starts."""

import contextlib
import os
from pathlib import Path

from servd.exceptions import StateError
from servd.ground.settings import (
    MAX_SOCKET_PATH_BYTES,
    SPEAKER,
    Settings,
    make_private_dir,
    replica_address,
    socket_dir_file,
)
from servd.ground.shared_stream import SharedStream

_SAY_LIMIT_S = 0.1
_stderr = SharedStream(2)


def say(text: str) -> None:
    """A line for people on stderr; it is not waited for long."""
    # nobody may be there to read it, or no room where it goes
    with contextlib.suppress(OSError):
        _stderr.write(f"{SPEAKER}{text}\n".encode(errors="backslashreplace"), _SAY_LIMIT_S)


def make_directories(settings: Settings) -> None:
    """Make the directories, or check that they are the user's own.

    Raises:
        StateError: one cannot be used, and why.
    """
    check_socket_paths(settings.socket_dir)
    for directory in (settings.state_dir, settings.socket_dir):
        make_private_dir(directory)
    make_log_dir(settings.log_dir)


def tell_socket_dir(settings: Settings) -> None:
    """Say in the state directory where the sockets are: whoever looks for them later may have another environment."""
    path = socket_dir_file(settings.state_dir)
    # where it cannot be said, they are looked for where the environment puts them
    with contextlib.suppress(OSError):
        Path(f"{path}.new").write_text(f"{settings.socket_dir}\n")
        os.replace(f"{path}.new", path)


def empty_socket_dir(socket_dir: str) -> None:
    """Remove what lies in it, as far as that can be done."""
    with contextlib.suppress(OSError):
        for name in os.listdir(socket_dir):
            with contextlib.suppress(OSError):
                os.unlink(f"{socket_dir}/{name}")


def make_log_dir(log_dir: str) -> None:
    """Logs are expendable: only a directory that is there and not ours alone is a reason not to start."""
    try:
        make_private_dir(log_dir)
    except StateError as error:
        if os.path.lexists(log_dir):
            raise
        say(f"{error}; nothing is logged until it can be used")


def check_socket_paths(socket_dir: str) -> None:
    """Check that sockets can lie in it.

    Raises:
        StateError: its path is too long.
    """
    longest = replica_address(socket_dir, "0" * 12).removeprefix("ipc://")
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        raise StateError(
            f"socket directory {socket_dir} has too long a path: sockets in it may have {MAX_SOCKET_PATH_BYTES} bytes; "
            "choose a shorter XDG_RUNTIME_DIR or TMPDIR"
        )
