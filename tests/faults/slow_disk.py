"""`python -m tests.faults.slow_disk DIRECTORY`: a disk on which a write takes 2 s, until standard input ends.

No driver that delays is needed: a small file system on a loop device is frozen for 2 s, thawed for a moment, and so on. Who
writes, creates or binds waits; who reads does not. It must be a process of its own, which touches nothing there: whoever waits
cannot thaw.
"""

import fcntl
import os
import select
import subprocess
import sys
from pathlib import Path

from tests.system.running_daemon import RunningDaemon

WRITE_S = 2.0
_THAWED_S = 0.02
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


class SlowPlace:
    """A directory on a disk of its own, which becomes slow. own: a directory for the disk's image."""

    def __init__(self, path: Path, own: Path) -> None:
        self._path = path
        self._freezer: subprocess.Popen[bytes] | None = None
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        image = own / "disk"
        with open(image, "wb") as file:
            file.truncate(64 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", str(image), str(path)], check=True)
        # it would not be an empty directory
        (path / "lost+found").rmdir()
        path.chmod(0o700)

    def begin(self, daemon: RunningDaemon) -> None:
        """From now on a write takes 2 s."""
        command = [sys.executable, "-m", "tests.faults.slow_disk", str(self._path)]
        self._freezer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._freezer.stdout is not None
        assert self._freezer.stdout.readline() == b"frozen\n"

    def end(self) -> None:
        """It is fast again."""
        if self._freezer is not None:
            self._freezer.communicate()
            self._freezer = None

    def forget(self) -> None:
        """Leave nothing frozen, and nothing mounted; the loop device goes with the mount."""
        self.end()
        subprocess.run(["umount", "-l", str(self._path)], check=True)


def main(directory: str) -> None:
    """Freeze and thaw. It lives in the end of its standard input alone: whoever dies leaves nothing frozen."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    is_over = False
    try:
        while not is_over:
            fcntl.ioctl(fd, _FIFREEZE, 0)
            try:
                print("frozen", flush=True)
                is_over = bool(select.select([sys.stdin], [], [], WRITE_S)[0])
            finally:
                fcntl.ioctl(fd, _FITHAW, 0)
            is_over = is_over or bool(select.select([sys.stdin], [], [], _THAWED_S)[0])
    finally:
        os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1])
