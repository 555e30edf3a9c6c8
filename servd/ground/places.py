"""Whether a directory takes files, asked without writing one."""

import os

NEEDED_BYTES = 64 * 1024
"""Less is no room: what one replica needs beside its socket, and then some."""


def trouble_of(what: str, directory: str) -> str:
    """Why nothing can be written in a directory, for people: "the socket directory /x is full"; "" if something can.

    Quotas and broken disks are not seen.

    Args:
        what: what it is, e.g. "socket directory".
    """
    try:
        found = os.statvfs(directory)
    except OSError as error:
        return f"the {what} {directory} cannot be used: {error.strerror}"
    free_bytes = found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)
    if found.f_flag & os.ST_RDONLY:
        return f"the {what} {directory} is read-only"
    if free_bytes < NEEDED_BYTES:
        return f"the {what} {directory} is full"
    # some file systems have no number of inodes
    if found.f_files and not found.f_ffree:
        return f"the {what} {directory} is full: it has no inode left"
    return ""
