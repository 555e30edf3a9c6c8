"""Whether a host and its Python let a daemon start at all: said at once, with the numbers, rather than found out later."""

import sysconfig

from servd.exceptions import HostLimitError, ServdError
from servd.ground.host_limits import descriptors_allowed, processes_left

LEAST_DESCRIPTORS = 64
"""Of each process: with one application of one replica, and a few clients."""
LEAST_PROCESSES = 12
"""Processes and threads of a daemon with one application of one replica, proxies excluded."""
PROXY_PROCESSES = 4
"""Processes and threads of a proxy."""


def is_free_threaded() -> bool:
    """Whether this Python was built without the lock (GIL), whether or not it runs with one."""
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def check_python() -> None:
    """Check that this Python is of a kind that servd was tried with.

    Raises:
        ServdError: it is free-threaded. What is known of forks beside threads, and of the loops of proxies and replicas, does not
            hold there.
    """
    if is_free_threaded():
        raise ServdError(
            "This Python is a free-threaded build (without GIL), which servd does not run on. Make the environment with the "
            "usual build of the same version"
        )


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
