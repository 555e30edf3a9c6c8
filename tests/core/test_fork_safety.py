"""Which processes may fork: threads are judged one by one, by whose they are."""

import importlib.metadata
import os
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from servd.replica.native.fork_safety import _known_as, fork_unsafe_reason, judge, uses_device
from servd.replica.native.pools import let_tokenizers_do_without
from servd.replica.native.threads import NativeThread, _has_to_run, native_threads

OPENBLAS = NativeThread("libscipy_openblas64_-32a4b2a6.so", "python")
GOMP = NativeThread("libgomp-e985bcbb.so.1.0.0", "python")
JAX = NativeThread("libjax_common.so", "python")
POLARS = NativeThread("_polars_runtime.abi3.so", "polars-0")


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ([], ""),
        ([OPENBLAS], ""),
        ([OPENBLAS, NativeThread("libopenblasp-r0-59ffcd50.3.15.so", "python")], ""),
        ([NativeThread("onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so", "python"), OPENBLAS], ""),
        ([NativeThread("libarrow.so.2600", "python"), NativeThread("libarrow.so.2600", "jemalloc_bg_thd")], ""),
        ([NativeThread("_polars_runtime.abi3.so", "jemalloc_bg_thd")], ""),
        ([NativeThread("_duckdb.cpython-311-x86_64-linux-gnu.so", "python")] * 9, ""),
        ([NativeThread("libiomp5.so", "python")], ""),
        ([NativeThread("hf_xet.abi3.so", "hf-xet-0"), NativeThread("hf_xet.abi3.so", "tracing-appende")], ""),
        ([NativeThread("libomp.so.5", "python")], "1 of libomp.so.5"),
        ([NativeThread("numexpr/interpreter.cpython-311-x86_64-linux-gnu.so", "python")], ""),
        (
            [NativeThread("other/interpreter.cpython-311-x86_64-linux-gnu.so", "python")],
            "1 of other/interpreter.cpython",
        ),
        # harmful ones are not hidden by harmless ones beside them
        ([OPENBLAS, POLARS, POLARS], "2 native thread(s) running, 2 of _polars_runtime.abi3.so;"),
        ([OPENBLAS, GOMP], "1 native thread(s) running, 1 of libgomp-e985bcbb.so.1.0.0;"),
        ([JAX, NativeThread("libjax_common.so", "tf_XLAEigen"), OPENBLAS], "2 of libjax_common.so"),
        ([NativeThread("libfoo.so", "python"), GOMP], "1 of libfoo.so, 1 of libgomp"),
        ([NativeThread("", "worker")], "1 of unknown, named 'worker'"),
    ],
)
def test_native_threads_are_judged_by_whose_they_are(native: list[NativeThread], expected: str) -> None:
    reason = judge([], native)
    assert expected in reason
    assert bool(reason) == bool(expected)
    assert not reason or reason.endswith("to have replicas forked")


def test_threads_of_files_that_others_may_have_too_are_known_by_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    native = [NativeThread("internal/_threads.cpython-311-x86_64-linux-gnu.so", "NativeWriter")]
    monkeypatch.setitem(sys.modules, "ddtrace.internal", sys)
    assert judge([], native) == ""
    monkeypatch.delitem(sys.modules, "ddtrace.internal")
    assert "1 native thread(s) running" in judge([], native)


def test_python_threads_and_devices_forbid_it() -> None:
    assert "1 thread(s) running: poller;" in judge(["poller"], [])
    assert "initialised CUDA" in judge([], [OPENBLAS], has_cuda=True)


def test_the_driver_of_a_gpu_is_seen_by_its_open_device(tmp_path: Path) -> None:
    # NVML has these open too, which only counts devices
    for number, target in enumerate(("/dev/null", "/dev/nvidiactl", "/dev/nvidia0", "/gone")):
        (tmp_path / str(number)).symlink_to(target)
    assert not uses_device(str(tmp_path))
    (tmp_path / "9").symlink_to("/dev/nvidia-uvm")
    assert uses_device(str(tmp_path))
    assert not uses_device()


@pytest.mark.usefixtures("only_new_threads")
def test_a_living_thread_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servd.replica.native.fork_safety._ENDING_S", 0.0)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="background")
    thread.start()
    assert "background" in fork_unsafe_reason()
    assert any("python" in found.owner for found in native_threads())
    stop.set()
    thread.join()


@pytest.mark.slow
def test_threads_that_start_anew_in_a_child_do_not_forbid_it() -> None:
    code = (
        "import threading\n"
        "from servd.replica.native.fork_safety import fork_unsafe_reason\n"
        "for name in ('OtelBatchSpanRecordProcessor', 'sentry-sdk.BackgroundWorker', 'poller'):\n"
        "    threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()\n"
        "    print(fork_unsafe_reason())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith("\n\nthe import left 1 thread(s) running: poller;")


@pytest.mark.slow
def test_a_thread_that_gets_no_cpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    data = bytes(40_000_000)

    def work_and_wait() -> None:
        zlib.compress(data)
        stop.wait()

    monkeypatch.setattr("servd.replica.native.threads._SETTLE_S", 0.02)
    # as on a busy host: it wants to run, and does not
    monkeypatch.setattr("servd.replica.native.threads.run_s", lambda _: 1.0)
    # other tests have left some
    others = [int(task) for task in os.listdir("/proc/self/task")]
    thread = threading.Thread(target=work_and_wait)
    thread.start()
    try:
        assert all(found.owner for found in native_threads(others))
    finally:
        stop.set()
        thread.join()


def test_a_thread_has_its_time_also_where_the_first_look_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = iter([7.0, 7.4, 7.6])
    monkeypatch.setattr("servd.replica.native.threads.run_s", lambda _: next(ran))
    ran_s: dict[str, float] = {}
    assert [_has_to_run("1", ran_s) for _ in range(3)] == [True, True, False]


def test_a_library_that_ends_forked_children_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba.np.ufunc.omppool", sys)
    # other tests have left some
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    assert "numba has run" in fork_unsafe_reason()


_POOL = """
import ctypes, sys
from servd.replica.native.threads import native_threads
from servd.replica.native.pools import end_openmp_pools

openmp = ctypes.CDLL(sys.argv[1])
nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)

def threads():
    return sum(thread.owner.startswith("libgomp") for thread in native_threads())

def work():
    openmp.GOMP_parallel(nothing, None, 0, 0)

end_openmp_pools()
openmp.omp_set_num_threads(3)
work()
before = threads()
end_openmp_pools()
end_openmp_pools()
ended = threads()
work()
print(before, ended, threads(), openmp.omp_get_max_threads())
"""


@pytest.mark.slow
def test_openmp_pools_end_and_start_anew_with_the_threads_that_the_code_has_chosen() -> None:
    packages = Path(importlib.metadata.distribution("scikit-learn").locate_file(""))
    (library,) = packages.glob("scikit_learn.libs/libgomp*")
    command = [sys.executable, "-c", _POOL, str(library)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2 0 2 3\n"


@pytest.mark.slow
def test_threads_of_a_library_are_known_as_its_own() -> None:
    code = (
        "import numpy; numpy.ones((600, 600)) @ numpy.ones((600, 600))\n"
        "from servd.replica.native.threads import native_threads\n"
        "from servd.replica.native.fork_safety import fork_unsafe_reason\n"
        "print([thread.owner for thread in native_threads()], fork_unsafe_reason())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "openblas" in found or found.startswith("[]"), found
    assert found.endswith("] \n"), "it may fork"


@pytest.mark.parametrize(
    ("value", "owner", "expected"),
    [
        ("true", "tokenizers.abi3.so", "false"),
        ("1", "tokenizers.abi3.so", "false"),
        ("true", "libgomp.so.1", "true"),
        # it does without by itself
        ("", "tokenizers.abi3.so", ""),
        (None, "tokenizers.abi3.so", None),
    ],
)
def test_tokenizers_use_no_pool_that_a_child_has_not(
    monkeypatch: pytest.MonkeyPatch, value: str | None, owner: str, expected: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
    monkeypatch.setattr("servd.replica.native.pools.native_threads", lambda: [NativeThread(owner, "python")])
    let_tokenizers_do_without()
    assert os.environ.get("TOKENIZERS_PARALLELISM") == expected


@pytest.fixture
def only_new_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that other tests have left are not there."""
    seen, everybody = threading.enumerate, {*threading.enumerate()} - {threading.main_thread()}
    monkeypatch.setattr(threading, "enumerate", lambda: [thread for thread in seen() if thread not in everybody])


@pytest.mark.usefixtures("only_new_threads")
def test_threads_that_are_about_to_end_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="ending")
    thread.start()
    waits: list[float] = []

    def end(seconds: float) -> None:
        waits.append(seconds)
        stop.set()
        thread.join()

    monkeypatch.setattr("servd.replica.native.fork_safety.block_for", end)
    assert "ending" not in fork_unsafe_reason()
    assert len(waits) == 1


@pytest.mark.usefixtures("only_new_threads")
def test_threads_without_a_name_are_known_by_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    own = type("Watch", (threading.Thread,), {"__module__": "watch.files", "run": lambda _: stop.wait()})
    threads = [threading.Thread(target=lambda: stop.wait()), own(), own(name="named")]
    threads += [own(name=f"named-{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    monkeypatch.setattr("servd.replica.native.fork_safety._ENDING_S", 0.0)
    try:
        reasons = [judge([_known_as(thread)], []) for thread in threads[:3]]
        first, many = sorted(map(_known_as, threads))[0], fork_unsafe_reason()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert f"1 thread(s) running: {threads[0].name} of {__name__}; start" in reasons[0]
    assert f"1 thread(s) running: {threads[1].name} of watch.files; start" in reasons[1]
    assert "1 thread(s) running: named; start" in reasons[2]
    # a pool may have hundreds
    assert f"6 thread(s) running: {first}, " in many
    assert ", ...; start" in many


@pytest.mark.usefixtures("only_new_threads")
def test_a_pool_that_nobody_uses_any_more_does_not_forbid_it() -> None:
    pool = ThreadPoolExecutor(4, thread_name_prefix="forgotten")
    assert list(pool.map(str, range(8)))
    kept: list[object] = [pool]
    # only the collector ends it
    kept.append(kept)
    del pool, kept
    assert "forgotten" not in fork_unsafe_reason()


@pytest.mark.usefixtures("only_new_threads")
def test_the_monitor_of_progress_bars_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Monitor(threading.Thread):
        """As tqdm's: the next bar starts another where this one was told to end."""

        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.was_killed = threading.Event()

        def run(self) -> None:
            self.was_killed.wait()

    monkeypatch.setitem(sys.modules, "tqdm._monitor", SimpleNamespace(TMonitor=Monitor))  # type: ignore[arg-type]
    monitor = Monitor()
    monitor.start()
    try:
        assert monitor.name not in fork_unsafe_reason()
    finally:
        monitor.was_killed.set()
        monitor.join()
