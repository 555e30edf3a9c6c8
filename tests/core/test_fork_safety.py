"""Which processes may fork."""

import threading

import pytest

from servd.replica.fork_safety import fork_unsafe_reason


@pytest.mark.parametrize(
    ("threads", "tasks", "libraries", "expected"),
    [
        ([], 1, "", ""),
        ([], 1, "/lib/libgomp.so.1", ""),
        ([], 2, "/x/libscipy_openblas64_.so", ""),
        (["poller"], 2, "", "1 thread(s) running: poller"),
        ([], 3, "/x/libopenblas.so /x/libgomp.so.1", "2 native thread(s) running, of libgomp"),
        ([], 2, "/x/cygrpc.so", "cygrpc"),
        ([], 2, "/lib/libfoo.so", "of an unknown library"),
    ],
)
def test_reasons(threads: list[str], tasks: int, libraries: str, expected: str) -> None:
    reason = fork_unsafe_reason(threads, tasks, libraries)
    assert expected in reason
    assert bool(reason) == bool(expected)


def test_a_living_thread_is_found() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="background")
    thread.start()
    assert "background" in fork_unsafe_reason()
    stop.set()
    thread.join()
