"""Whether a host lets a daemon start at all: said at once, with the numbers, rather than found out later."""

from servd.exceptions import HostLimitError
from servd.ground.host_limits import descriptors_allowed, processes_left

LEAST_DESCRIPTORS = 64
"""Of each process: with one application of one replica, and a few clients."""
LEAST_PROCESSES = 12
"""Processes and threads of a daemon with one application of one replica, proxies excluded."""
PROXY_PROCESSES = 4
"""Processes and threads of a proxy."""


def check_host(proxies: int) -> None:
    """Check that the daemon, its proxies and one replica fit.

    Raises:
        HostLimitError: they do not.
    """
    most = descriptors_allowed()
    if most < LEAST_DESCRIPTORS:
        raise HostLimitError(
            f"a process may have {most} files and sockets open here, and servd needs {LEAST_DESCRIPTORS}, more with many clients "
            "or replicas. Raise the limit (`ulimit -n`, LimitNOFILE= of a service) and start it again"
        )
    left, needed = processes_left(), LEAST_PROCESSES + PROXY_PROCESSES * proxies
    if left is not None and left < needed:
        raise HostLimitError(
            f"{max(left, 0)} more processes and threads may be started here, and servd with {proxies} "
            f"{'proxy' if proxies == 1 else 'proxies'} needs {needed}. Raise the limit (`ulimit -u`, pids.max of the control "
            "group, TasksMax= of a service) and start it again"
        )
