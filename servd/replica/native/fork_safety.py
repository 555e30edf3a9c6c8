"""May this process fork? Threads and devices that do not survive it, and connections that it would share, judged one by one."""

import gc
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from servd.ground.clock import SystemClock, block_for
from servd.replica.native.connections import Connection
from servd.replica.native.locked_files import LockedFile
from servd.replica.native.objects import living
from servd.replica.native.pools import end_openmp_pools
from servd.replica.native.threads import NativeThread, described, native_threads

SURVIVE = {
    "openblas": "OpenBLAS, as numpy 2.4, scipy 1.16 and opencv 5.0 bring it: makes its pool anew in a child",
    "libiomp5": "Intel's OpenMP 2026: makes its pool anew, as large as the environment says",
    "onnxruntime": "onnxruntime 1.32: a session of the parent runs in the child on the caller's thread",
    "arrow": "pyarrow 26: its pools are made anew",
    "duckdb": "duckdb 2.0: the same connection answers in the child, on the caller's thread, and so does a new one",
    "tokenizers": "tokenizers 0.23: encodes batches in the child, on the caller's thread",
    "hf_xet": "hf_xet 1.8, with which huggingface_hub 2.4 downloads models: makes its threads and its session anew",
    "catboost": "catboost 1.2: predicts in the child",
    "cv2": "opencv 5.0: filters in the child, on the caller's thread",
    "numexpr/": "numexpr 2.14, which pandas brings along where it is installed: makes its threads anew",
}
"""Part of a library's file name -> what was tried: work in the parent, `os.fork()`, the same work in the child, no hang."""

SURVIVE_OF = {
    "ddtrace.internal": ("internal/_threads.", "native/_native."),
}
"""Module that is loaded -> parts of names of its files, which others may have too, and are its own then. ddtrace 4.16 ends its
threads at a fork and starts them anew on both sides; a child sends its spans itself, once."""

SURVIVE_BY_NAME = {
    "jemalloc_bg_thd": "jemalloc's background thread, as pyarrow 26 and polars 2.1 bring it: only tidies up",
    "polars-ooc-clea": "polars 2.1: removes files of queries that outgrow memory; its other threads do not survive",
}
"""Name of a thread, whatever library's it is -> what is known of it."""

_OTEL = "opentelemetry-sdk 1.45: starts anew in a child, which exports what it has recorded itself, once"
_EAPM = "elastic-apm 6.26: starts anew in a child, which sends what it has recorded itself, once"
START_ANEW = {
    "eapm event processor thread": _EAPM,
    "eapm metrics collect timer": _EAPM,
    "eapm conf updater": _EAPM,
    "OtelBatchSpanRecordProcessor": _OTEL,
    "OtelBatchLogRecordProcessor": _OTEL,
    "OtelPeriodicExportingMetricReader": _OTEL,
    "sentry-sdk.BackgroundWorker": "sentry-sdk 2.50: starts anew with the first event of a child",
}
"""Name of a Python thread that its library starts anew in a child -> what was tried."""

REFUSE = {
    "numba.np.ufunc.omppool": "numba has run a function with `parallel=True` on OpenMP, and ends each forked child that runs "
    "another; run the first one after the fork, in {hook}, or choose another layer (NUMBA_THREADING_LAYER), to have "
    "replicas forked",
}
"""Module that is loaded once a library will not work in a child, whatever threads are left -> the sentence about it."""

_PARALLEL_SESSION = (
    "onnxruntime has a session with `ExecutionMode.ORT_PARALLEL`, whose `run` comes to no end in a forked child; make it after "
    "the fork, in {hook}, or use `ORT_SEQUENTIAL` to have replicas forked"
)
"""Tried with onnxruntime 1.32: it spins, so that nobody can tell it from work. `intra_op_num_threads` is no matter."""

_NAMES_SHOWN = 3
_ENDING_S = 0.5
_LOOK_AGAIN_S = 0.002

_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd")
"""Open once the driver of a GPU has been initialised, by whichever library; asking how many GPUs there are does not need them."""


def fork_unsafe_reason(
    connections: Sequence[Connection] = (),
    locked: Sequence[LockedFile] = (),
    *,
    left_by: str = "import",
    hook: str = "the constructor",
) -> str:
    """Why replicas of this process must be spawned instead of forked; "" if they may be forked.

    Ends OpenMP's idle pools and tqdm's monitors first, and waits a moment for threads of Python's that are about to end. To be
    asked on the thread that has run the code.

    Args:
        connections: that have been opened.
        locked: files with locks that a child would not have.
        left_by: what has just run, for the sentence.
        hook: what runs after the fork, for the sentence.
    """
    python = [_known_as(thread) for thread in _settled_threads()]
    if not python:
        refusals = [reason for module, reason in REFUSE.items() if module in sys.modules]
        if refusals or _has_parallel_session():
            return [*refusals, _PARALLEL_SESSION][0].format(hook=hook)
        end_openmp_pools()
    # where Python's own forbid it, whose the others are is of no interest
    native = [] if python else native_threads(besides={thread.native_id for thread in threading.enumerate()})
    return judge(python, native, connections, locked, has_cuda=_has_cuda_context(), left_by=left_by, hook=hook)


def judge(
    python: Sequence[str],
    native: Sequence[NativeThread],
    connections: Sequence[Connection] = (),
    locked: Sequence[LockedFile] = (),
    *,
    has_cuda: bool = False,
    left_by: str = "import",
    hook: str = "the constructor",
) -> str:
    """As `fork_unsafe_reason`, of these threads.

    Args:
        python: names, for people, of Python threads beside the main one and those that start anew.
        native: all other threads.
        connections: open ones, those of HTTP too, which forbid nothing.
        locked: files with locks that a child would not have.
    """
    how_to_fork = f"start them after the fork, in {hook}, to have replicas forked"
    if python:
        return f"the {left_by} left {len(python)} thread(s) running: {_some(sorted(python))}; {how_to_fork}"
    if has_cuda:
        return f"the {left_by} initialised CUDA; move models to the device in {hook} to have replicas forked"
    harmful = [thread for thread in native if not _survives(thread)]
    if harmful:
        return f"the {left_by} left {len(harmful)} native thread(s) running, {described(harmful)}; {how_to_fork}"
    peers = sorted({one.peer for one in connections if not one.is_http})
    if peers:
        return (
            f"the {left_by} left a connection open to {_some(peers)}, and replicas that share one read each other's answers; "
            f"open it after the fork, in {hook}, to have replicas forked"
        )
    if alone := [file.path for file in locked if not file.is_shared]:
        return (
            f"the {left_by} left {_some(alone)} locked for one process alone, and a fork would write there without the lock; "
            f"open it to be read only, or after the fork, in {hook}, to have replicas forked"
        )
    if databases := [file.path for file in locked if file.is_shared]:
        return (
            f"the {left_by} left a database of SQLite open, {_some(databases)}, in WAL mode or with a query under way, and a "
            f"fork would go on without its lock; open it after the fork, in {hook}, or close it, to have replicas forked"
        )
    return ""


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''}"


def _settled_threads() -> list[threading.Thread]:
    """Python's threads beside the main one and those that start anew, when those have ended that end within a moment."""
    # the next bar starts another, here or in a child
    if isinstance(kind := getattr(sys.modules.get("tqdm._monitor"), "TMonitor", None), type):
        monitors: list[Any] = [thread for thread in threading.enumerate() if isinstance(thread, kind)]
        for monitor in monitors:
            monitor.was_killed.set()
    if not _lasting_threads():
        return []
    # a pool that nobody uses any more tells its threads to end as it is collected
    gc.collect()
    clock = SystemClock()
    limit = clock.now() + _ENDING_S
    while (left := _lasting_threads()) and clock.now() < limit:
        block_for(_LOOK_AGAIN_S)
    return left


def _lasting_threads() -> list[threading.Thread]:
    main = threading.main_thread()
    return [thread for thread in threading.enumerate() if thread is not main and thread.name not in START_ANEW]


def _known_as(thread: threading.Thread) -> str:
    """Its name, and whose it is where nobody has given it one."""
    if not thread.name.startswith("Thread-"):
        return thread.name
    runs: Any = type(thread) if type(thread) is not threading.Thread else getattr(thread, "_target", None)
    module = getattr(runs, "__module__", None)
    return f"{thread.name} of {module}" if module else thread.name


def _survives(thread: NativeThread) -> bool:
    library = thread.owner.lower()
    if thread.name in SURVIVE_BY_NAME or any(part in library for part in SURVIVE):
        return True
    return any(part in library for module, parts in SURVIVE_OF.items() if module in sys.modules for part in parts)


def _has_parallel_session() -> bool:
    module: Any = sys.modules.get("onnxruntime")
    kind, modes = getattr(module, "InferenceSession", None), getattr(module, "ExecutionMode", None)
    if not isinstance(kind, type) or modes is None:
        return False
    return any(_mode_of(session) == modes.ORT_PARALLEL for session in living(kind))


def _mode_of(session: Any) -> Any:
    try:
        return session.get_session_options().execution_mode
    except AttributeError:
        # its model could not be loaded
        return None


def _has_cuda_context() -> bool:
    torch = sys.modules.get("torch")
    try:
        return bool(torch is not None and torch.cuda.is_initialized()) or uses_device()
    except AttributeError:
        # some other module of that name, or still without its parts
        return uses_device()


def uses_device(folder: str = "/proc/self/fd") -> bool:
    """Whether the driver of a GPU is at work in this process. folder: of links to the open files."""
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}") in _DEVICES:
                return True
        except OSError:
            # the descriptor of the list itself
            continue
    return False
