"""The native threads of this process, and whose they are.

How this works: libraries seldom name their threads, so a name says nothing. But whoever started a thread has its entry
function on the outermost end of that thread's stack: the return address nearest to the end lies in the code of the library.
Stacks are read through `/proc/self/mem`, so that nothing can be touched that is not there. A mapping may hold the stacks of many
threads one behind the other: with glibc 2.42 and Linux 6.13 their guards are no mappings, and only a read stops there.
"""

import os
import re
import struct
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence

from servd.ground.clock import SystemClock, block_for
from servd.ground.quick_dataclass import dataclass

_MOST_STACK_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
_CONTROL_BLOCK_BYTES = 2304
"""Of a thread, where its stack ends; glibc's is about so large, and the thread's entry function stands in it."""
_NEAR_BYTES = 256
"""A thread that waits for a lock of Python's has Python's code nearer than this: the C library's is all that lies between."""
_SETTLE_S = 0.5
_MOST_SETTLE_S = 10.0
_LOOK_AGAIN_S = 0.01
# on every stack, whoever's it is
_COMMON = ("libc.so", "libc-", "ld-", "libpthread", "libstdc++", "libm.so", "libm-", "libgcc_s", "libdl")
_PYTHON_MODULE = ".cpython-"
_FROM_CTYPES = "libffi"
"""What calls the C library's functions for Python code itself."""
_INTERPRETER = re.compile(r"libpython\d[^/]*\.so|python[\d.]*[td]*$|lib-dynload/")
_WORD = struct.Struct("<Q")
_PAGE_BYTES = 4096

_Segment = tuple[int, int, str]
"""First address, address after the last, file."""


@dataclass(frozen=True, slots=True, order=True)
class NativeThread:
    """owner: name of the file whose code it runs, with the package's where it is a Python module, "" if that cannot be seen.
    name: as the kernel has it.
    """

    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class Wait:
    """What the kernel says of a thread.

    syscall: number of the system call that it is in, None while it runs. arguments: the call's. wakes: how often it has gone to
    sleep so far. stack_at: where its stack ends now.
    """

    native_id: int
    name: str = ""
    syscall: int | None = None
    arguments: tuple[int, ...] = ()
    wakes: int = 0
    stack_at: int = 0


@dataclass(frozen=True, slots=True)
class ThreadNow:
    """What a thread is at.

    owner: as of a `NativeThread`. waits_in: file of the innermost code that is not the C library's, "" if none can be seen.
    libraries: files with code on its stack that is neither the C library's nor the interpreter's; also what an earlier call has
    left there.
    """

    wait: Wait
    owner: str
    waits_in: str = ""
    libraries: frozenset[str] = frozenset()


def native_threads(besides: Collection[int | None] = ()) -> list[NativeThread]:
    """All threads of this process but the main one, Python's included; sorted.

    Args:
        besides: native identities of threads to leave out.

    One that is at work is looked at again until it has run for half a second, which takes longer on a busy host: pools go on for
    a moment after their last task.
    """
    clock = SystemClock()
    began = clock.now()
    ran_s: dict[str, float] = {}
    left_out = {str(os.getpid()), *map(str, besides)}
    found: dict[str, NativeThread] = {}
    while True:
        tasks = [task for task in os.listdir("/proc/self/task") if task not in left_out]
        unknown = [task for task in tasks if task not in found or not found[task].owner]
        if unknown:
            code, stacks = _segments()
            found |= {task: _look_at(task, code, stacks) for task in unknown}
        waited_s = clock.now() - began
        unknown = [task for task in unknown if not found[task].owner and waited_s < _MOST_SETTLE_S]
        if waited_s > _SETTLE_S:
            unknown = [task for task in unknown if _has_to_run(task, ran_s)]
        if not unknown:
            return sorted(found[task] for task in tasks)
        for task in unknown:
            if (now_s := run_s(task)) is not None:
                ran_s.setdefault(task, now_s)
        block_for(_LOOK_AGAIN_S)


def _has_to_run(task: str, ran_s: dict[str, float]) -> bool:
    """Whether a thread is at work, and has had less time than it may need to come to an end. ran_s: what it had at first."""
    now_s = run_s(task)
    # a busy host may be slow with the first look: what it had before does not count
    return now_s is not None and now_s - ran_s.setdefault(task, now_s) < _SETTLE_S


def run_s(task: str) -> float | None:
    """Seconds for which a thread has had a CPU so far; None where it wants none now, or has ended."""
    try:
        with open(f"/proc/self/task/{task}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/self/task/{task}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1e9 if state == "R" else None
    except (OSError, IndexError):
        # without scheduler statistics, or without the thread
        return None


def waits_now() -> list[Wait]:
    """All threads of this process but the calling one, as the kernel sees them. Cheap: no stack is read."""
    own = str(threading.get_native_id())
    found = (_wait_now(task) for task in os.listdir("/proc/self/task") if task != own)
    return [wait for wait in found if wait is not None]


def threads_now(waits: Iterable[Wait]) -> list[ThreadNow]:
    """These threads with what their stacks say."""
    code, stacks = _segments()
    return [_thread_now(wait, code, stacks) for wait in waits]


def is_interpreter(library: str) -> bool:
    """Whether this is the file of Python itself, or of a module that comes with it."""
    return _INTERPRETER.match(library) is not None


def _wait_now(task: str) -> Wait | None:
    try:
        with open(f"/proc/self/task/{task}/status", encoding="utf-8", errors="replace") as file:
            about = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        with open(f"/proc/self/task/{task}/syscall", encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        # it has ended
        return None
    name, wakes = about["Name"], int(about["voluntary_ctxt_switches"])
    # "running" has nothing else to show
    if len(words) <= 2:
        return Wait(int(task), name, wakes=wakes)
    arguments = tuple(int(word, 16) for word in words[1:-2])
    return Wait(int(task), name, int(words[0]), arguments, wakes, int(words[-2], 16))


def _thread_now(wait: Wait, code: list[_Segment], stacks: list[_Segment]) -> ThreadNow:
    if wait.syscall is None:
        return ThreadNow(wait, "")
    stack = _stack_from(wait.stack_at, stacks)
    files = _files_on(stack, code)
    return ThreadNow(
        wait,
        _library_of(stack, code),
        waits_in=innermost(files),
        libraries=frozenset(file for _, file in files if not is_interpreter(file)),
    )


def innermost(files: Sequence[tuple[int, str]]) -> str:
    """Whose code it is that waits, "" for nobody's.

    What lies further in than Python's own code, or than a call of the C library by `ctypes`, and so near, is left from an earlier
    call, or from the thread of before the fork whose stack this one has got.

    Args:
        files: distance from the inner end, bytes, and file of each word that points into code, the C library's left out.
    """
    near = [file for place, file in files if place < _NEAR_BYTES]
    python = next((file for file in near if is_interpreter(file)), "")
    caller = next((file for file in near if file.startswith(_FROM_CTYPES)), "")
    return python or caller or (files[0][1] if files else "")


def _stack_from(pointer: int, stacks: list[_Segment]) -> bytes:
    """What is on a stack, from its inner end on."""
    found = _segment_of(pointer, stacks)
    if found is None:
        return b""
    parts: list[bytes] = []
    left = found[1] - pointer
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(pointer)
        while left:
            wanted = min(left, _READ_BYTES)
            try:
                parts.append(memory.read(wanted))
            except OSError:
                # the guard of the next stack
                break
            left -= wanted
            if len(parts[-1]) < wanted:
                break
    return own_part(b"".join(parts), pointer)


def own_part(stack: bytes, pointer: int) -> bytes:
    """What belongs to one thread: it ends with the thread's control block, which holds its own address, on x86-64 at least.

    Args:
        stack: from the inner end on, maybe with other things behind it. pointer: address of its first byte.
    """
    words = memoryview(stack)[: len(stack) // _WORD.size * _WORD.size].cast("Q")
    for number in range(len(words) - 2):
        address = pointer + number * _WORD.size
        if words[number] == address == words[number + 2]:
            return stack[: number * _WORD.size + _CONTROL_BLOCK_BYTES]
    return stack


def _files_on(stack: bytes, code: list[_Segment]) -> list[tuple[int, str]]:
    """Distance from the inner end, bytes, and file of each word that points into code; the C library's left out."""
    if not code:
        return []
    low, high = code[0][0], code[-1][1]
    whole = stack[: len(stack) // _WORD.size * _WORD.size]
    found = []
    for number, (address,) in enumerate(_WORD.iter_unpack(whole)):
        # most words point nowhere
        if low <= address < high and (file := _file_at(address, code)):
            found.append((number * _WORD.size, file))
    return found


def loaded_libraries() -> list[str]:
    """Paths of all files whose code is mapped into this process; sorted."""
    code, _ = _segments()
    return sorted({path for _, _, path in code})


def _look_at(task: str, code: list[_Segment], stacks: list[_Segment]) -> NativeThread:
    folder = f"/proc/self/task/{task}"
    name = library = ""
    try:
        with open(f"{folder}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        with open(f"{folder}/syscall", encoding="ascii") as file:
            words = file.read().split()
        # "running" has no stack pointer to show
        if len(words) > 2:
            library = _library_of(_stack_from(int(words[-2], 16), stacks), code)
    except OSError:
        # it has ended, or the kernel does not say
        pass
    return NativeThread(library, name)


def _library_of(stack: bytes, code: list[_Segment]) -> str:
    whole = stack[-_MOST_STACK_BYTES:]
    whole = whole[len(whole) % _WORD.size :]
    for (address,) in reversed(list(_WORD.iter_unpack(whole))):
        # whole pages are a size: that of the thread's stack, 8 MiB, lies in the code of a Python at low addresses, as Debian's
        if address % _PAGE_BYTES and (file := _file_at(address, code)):
            return file
    return ""


def _file_at(address: int, code: list[_Segment]) -> str:
    """Name of the file whose code is there, "" for none, and for those that are on every stack."""
    found = _segment_of(address, code)
    if found is None:
        return ""
    folder, name = os.path.split(found[2])
    if name.startswith(_COMMON):
        return ""
    # a module's name says little without its package's
    return f"{os.path.basename(folder)}/{name}" if _PYTHON_MODULE in name else name


def _segments() -> tuple[list[_Segment], list[_Segment]]:
    """Code of files, and memory of no file, each in order."""
    code: list[_Segment] = []
    anonymous: list[_Segment] = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            span, rights, _, _, _, *path = line.split(maxsplit=5)
            first, _, after = span.partition("-")
            segment = int(first, 16), int(after, 16), path[0].strip() if path else ""
            if "x" in rights and segment[2].startswith("/"):
                code.append(segment)
            elif "w" in rights and not segment[2].startswith("/"):
                anonymous.append(segment)
    return code, anonymous


def _segment_of(address: int, segments: list[_Segment]) -> _Segment | None:
    place = bisect_right(segments, (address, 1 << 64, "")) - 1
    if place >= 0 and segments[place][0] <= address < segments[place][1]:
        return segments[place]
    return None


def described(threads: Iterable[NativeThread]) -> str:
    """For a sentence: how many of which library."""
    counts: dict[str, int] = {}
    for thread in threads:
        owner = thread.owner or f"unknown, named {thread.name!r}"
        counts[owner] = counts.get(owner, 0) + 1
    return ", ".join(f"{count} of {owner}" for owner, count in counts.items())
