"""Tells a thread that waits for one which the fork has left behind from a slow one.

How this works: a library's threads do not exist in a forked child. A call that hands them work, or wants a lock that one of them
held, waits for ever. Nothing is guessed from time; all of this must be so, or it is no lost wait:

- The wait is a futex that only a thread of this process can wake, without a time limit. What computes shows as running; what
  waits for a disk, a socket, a device, a child or another process shows another system call, or a futex that is shared.
- The code that waits is a library's, not Python's own locks, queues, events and sleeps, whose code is nearest then.
- That very library had a thread where the process was forked, and has none here.
- No other thread could come and wake it: the main loop has turned meanwhile, so nothing of it is in the middle of a library;
  Python's other threads wait for work or have no library's code on their stacks; other libraries' threads sleep in such a futex
  themselves.
- The thread has not woken up once between two looks that are `SURE_S` apart.
"""

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

from servd.ground.quick_dataclass import dataclass
from servd.observability.loop_watch import blocked
from servd.observability.tracebacks import is_runtime
from servd.replica.native.fork_safety import SURVIVE_BY_NAME
from servd.replica.native.threads import ThreadNow, Wait, is_interpreter, native_threads, threads_now, waits_now

SURE_S = 5.0
LOOK_S = 2.5
_FUTEX = 202 if os.uname().machine == "x86_64" else 98
_PRIVATE = 128
_COMMAND = 127
_WAITS = (0, 9)
"""FUTEX_WAIT and FUTEX_WAIT_BITSET."""
_OWN = "ZMQbg"
"""How names of ZeroMQ's threads begin: they do nothing but move servd's messages."""

_left_behind: frozenset[str] = frozenset()


def note_threads() -> None:
    """To be called in a process that replicas are forked from, before the first: whose threads will be missing in them."""
    global _left_behind
    # Python's own, where there are any, start anew in a child
    _left_behind = frozenset(t.owner for t in native_threads() if t.owner and not is_interpreter(t.owner))


@dataclass(frozen=True, slots=True)
class LostWait:
    """verdict: a sentence about the replica. stack: of the thread, as `blocked` has it."""

    verdict: str
    stack: str


class LostWaits:
    """Looks for lost waits of this process, from a thread of its own.

    Args:
        ask: has a callback called on the main loop, without waiting for it.
        left_behind: files of the libraries that had threads before the fork; by default as `note_threads` has it.
    """

    def __init__(self, ask: Callable[[Callable[[], None]], None], left_behind: Collection[str] | None = None) -> None:
        self._ask = ask
        self._left_behind = _left_behind if left_behind is None else left_behind
        self._looked_at = float("-inf")
        self._has_turned = False
        self._since: dict[Wait, float] = {}
        self._seen: dict[Wait, ThreadNow] = {}

    def __repr__(self) -> str:
        return f"LostWaits({sorted(self._left_behind)}, waiting={[wait.native_id for wait in self._since]})"

    def look(self, now: float, *, is_at_work: bool) -> LostWait | None:
        """The lost wait, once it is sure.

        Args:
            now: monotonic seconds; to be called at least every `LOOK_S`.
            is_at_work: there is something that may wait.
        """
        if not self._left_behind or not is_at_work or now < self._looked_at + LOOK_S:
            return None
        # if it was asked so lately, it has turned since any wait began that is sure now
        has_turned, self._has_turned = self._has_turned and now <= self._looked_at + SURE_S, False
        self._looked_at = now
        self._ask(self._turned)
        waits = waits_now()
        self._since = {wait: self._since.get(wait, now) for wait in waits if sleeps_for_ever(wait)}
        sure = {wait for wait, since in self._since.items() if since <= now - SURE_S}
        if not self._may_be_lost(sure):
            return None
        main = os.getpid()
        rest = [wait for wait in waits if not (has_turned and wait.native_id == main)]
        lost = lost_waits(threads_now(rest), self._left_behind, _idle())
        # nor has any woken while the stacks were read
        if not lost or not sure.issuperset(lost) or not set(waits_now()).issuperset(lost):
            return None
        return _described(lost[0], self._seen[lost[0]].waits_in, now - self._since[lost[0]])

    def _may_be_lost(self, sure: set[Wait]) -> bool:
        """Whether one of these waits in such a library. The stack of each is read once: it has not woken since."""
        new = [wait for wait in sure if wait not in self._seen]
        known = {wait: thread for wait, thread in self._seen.items() if wait in sure}
        # the map of memory is long: it is not read for nothing
        self._seen = known | ({thread.wait: thread for thread in threads_now(new)} if new else {})
        return any(thread.waits_in in self._left_behind for thread in self._seen.values())

    def _turned(self) -> None:
        self._has_turned = True


def lost_waits(
    threads: Iterable[ThreadNow], left_behind: Collection[str], idle: Collection[int] = ()
) -> Sequence[Wait]:
    """The waits for one that is not there; none if any other thread could end them.

    Args:
        threads: all of this process but the one that looks, and the main one if its loop turns.
        left_behind: files of the libraries that had threads before the fork.
        idle: native identities of Python's threads in which only servd and the standard library are at work.
    """
    lost: list[ThreadNow] = []
    alive: set[str] = set()
    for thread in threads:
        wait = thread.wait
        if wait.name in SURVIVE_BY_NAME or wait.name.startswith(_OWN):
            continue
        is_asleep = sleeps_for_ever(wait)
        if not is_interpreter(thread.owner):
            alive.add(thread.owner)
            if not is_asleep or not thread.owner:
                return ()
        elif _holds_nothing(thread, is_asleep and wait.native_id in idle):
            continue
        elif is_asleep and thread.waits_in in left_behind:
            lost.append(thread)
        else:
            return ()
    return () if any(thread.waits_in in alive for thread in lost) else [thread.wait for thread in lost]


def sleeps_for_ever(wait: Wait) -> bool:
    """Whether it is in a futex without a time limit that only this process can wake."""
    if wait.syscall != _FUTEX or len(wait.arguments) < 4:
        return False
    _, operation, _, limit, *_ = wait.arguments
    return bool(operation & _PRIVATE) and operation & _COMMAND in _WAITS and not limit


def _holds_nothing(thread: ThreadNow, is_idle: bool) -> bool:
    """Whether this thread of Python's is in the middle of no library: it waits in Python's own code, and called nothing else."""
    return is_interpreter(thread.waits_in) and (is_idle or not thread.libraries)


def _idle() -> set[int]:
    frames = sys._current_frames()
    found = set()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        while frame is not None and is_runtime(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None and thread.native_id is not None:
            found.add(thread.native_id)
    return found


def _described(wait: Wait, library: str, waited_s: float) -> LostWait:
    ids = {thread.native_id: thread.ident for thread in threading.enumerate()}
    # a forked process may not know its main thread by its new number
    ident = threading.main_thread().ident if wait.native_id == os.getpid() else ids.get(wait.native_id)
    stack = blocked(ident or 0, waited_s)
    place = stack.partition("\n")[0].partition(" in ")[2] or "no Python code"
    return LostWait(f"waits in {library} for a thread that the fork left behind, called in {place}", stack)
