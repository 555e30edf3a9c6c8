"""Log files of replicas that are gone: the newest stay for a while, wherever they lie."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

DEAD_FILES_KEPT = 100
"""Log files of replicas that are gone, of all deployments together."""
DEAD_BYTES_KEPT = 2 * 1024 * 1024 * 1024
"""What they may hold together; the newest one stays whatever it holds."""


def forget_dead(
    log_dir: str, living: Collection[str], kept: int = DEAD_FILES_KEPT, kept_bytes: int = DEAD_BYTES_KEPT
) -> None:
    """Remove the log files of replicas that are gone, with those they rotated to, all but the newest.

    Args:
        living: names as `replica_file` gives them.
        kept, kept_bytes: how many stay, and how much they hold together; the newest one stays in any case.
    """
    dead = []
    try:
        for entry in os.scandir(Path(log_dir) / "serve"):
            if entry.name.startswith("deployment_") and entry.name.rpartition(".log")[0] + ".log" not in living:
                # one that leads to a file that is gone is a dead one too
                status = entry.stat(follow_symlinks=os.path.exists(entry.path))
                dead.append((status.st_mtime, entry.path, status.st_size))
        held = 0
        for number, (_, path, size) in enumerate(sorted(dead, reverse=True)):
            held += size
            if number >= kept or (number and held > kept_bytes):
                _remove_log(path)
    except OSError:
        # the directory is gone or read-only, or somebody else cleans up: logs are expendable, also to us
        pass


def _remove_log(path: str) -> None:
    """Remove a log file, and the one in a `logs_dir` if it is a link to that."""
    if os.path.islink(path):
        target, name = os.readlink(path), os.path.basename(path).rpartition(".log")[0]
        if os.path.basename(target).startswith(f"{name}.log"):
            with contextlib.suppress(OSError):
                os.unlink(target)
    os.unlink(path)
