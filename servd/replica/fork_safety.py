"""May this process fork? Threads and devices that do not survive it."""

import os
import sys
import threading

_SAFE_POOLS = ("openblas",)
"""Native thread pools that make themselves anew in a child; named as their libraries are."""

_UNSAFE_POOLS = ("libgomp", "libiomp", "libomp", "cygrpc", "libcuda.", "libtbb", "libtorch")


def fork_unsafe_reason(
    threads: list[str] | None = None, kernel_tasks: int | None = None, libraries: str | None = None
) -> str:
    """Why replicas must be spawned instead of forked; "" if they may be forked.

    Args:
        threads: names of the Python threads beside the main one; None = of this process, as the others.
        kernel_tasks: threads as the kernel counts them.
        libraries: text that names the loaded native libraries.
    """
    if threads is None:
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threads:
        return f"the import left {len(threads)} thread(s) running: {', '.join(sorted(threads))}"
    if _has_cuda_context():
        return "the import initialised CUDA"
    native = (_kernel_tasks() if kernel_tasks is None else kernel_tasks) - 1
    if native <= 0:
        return ""
    loaded = (_loaded_libraries() if libraries is None else libraries).lower()
    unsafe = [name.rstrip(".") for name in _UNSAFE_POOLS if name in loaded]
    if unsafe:
        return f"the import left {native} native thread(s) running, of {', '.join(unsafe)} as it seems"
    if any(name in loaded for name in _SAFE_POOLS):
        return ""
    return f"the import left {native} native thread(s) running, of an unknown library"


def _has_cuda_context() -> bool:
    torch = sys.modules.get("torch")
    try:
        return bool(torch is not None and torch.cuda.is_initialized())
    except AttributeError:
        # some other module of that name, or still without its parts
        return False


def _kernel_tasks() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _loaded_libraries() -> str:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return "\n".join({line.rpartition(" ")[2].strip() for line in file if ".so" in line})
    except OSError:
        return ""
