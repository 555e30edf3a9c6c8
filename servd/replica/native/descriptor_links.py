"""What the kernel says of descriptors: of this process's, and of those that the processes it has started hold."""

import os


def link_of(fd: int) -> str:
    """What is behind it, as the kernel names it; "" where it does not say, or nothing is open."""
    return _read_link(f"/proc/self/fd/{fd}")


def info_of(fd: int) -> dict[str, str]:
    """Lines of the kernel's about it, by name."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return {}


def children() -> list[str]:
    """Numbers of the processes that this thread has started."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        # the kernel does not say
        return []


def links_of(pid: str) -> set[str]:
    """As `link_of`, of all descriptors of a process.

    Raises:
        OSError: it has ended, or is another user's.
    """
    return {_read_link(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


def held_by_children() -> set[str]:
    """As `links_of`, of all processes that this one has started."""
    found: set[str] = set()
    for pid in children():
        try:
            found |= links_of(pid)
        except OSError:
            # it has ended, or is another user's
            continue
    return found


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
