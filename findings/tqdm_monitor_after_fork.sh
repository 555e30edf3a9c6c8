#!/bin/bash
# Guess, before running: tqdm's monitor thread ends with the last bar, and the first bar of a forked child starts one of its own.
# Seen (tqdm 4.70.1): the thread stays for good once a bar was made, also after that is closed. A forked child does not have it, but
# tqdm there goes by an event that the thread sets when it ends, and so takes the parent's for one that runs: no bar of the child
# ever gets a monitor, and one that slows down stays as it was painted last, where the parent's is painted anew.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q tqdm==4.70.1 2>/dev/null
cat > "$directory/bars.py" <<'CODE'
import io
import os
import threading
import time

import tqdm

tqdm.tqdm.monitor_interval = 0.2


def is_painted_anew() -> bool:
    """Whether a bar that was fast, and has slowed down, shows its last step within 3 s."""
    out = io.StringIO()
    bar = tqdm.tqdm(total=1_000_000, file=out, mininterval=0.01, maxinterval=0.3)
    for _ in range(200_000):
        bar.update()
    limit = time.monotonic() + 3
    while bar.miniters > 1 and time.monotonic() < limit:
        time.sleep(0.05)
    found = bar.miniters <= 1
    bar.close()
    return found


def monitors() -> list[str]:
    return [type(thread).__name__ for thread in threading.enumerate() if thread is not threading.main_thread()]


print("tqdm", tqdm.__version__)
of_parent = is_painted_anew(), monitors()
print("parent: painted anew, threads afterwards:", *of_parent, flush=True)
pid = os.fork()
if not pid:
    of_child = is_painted_anew(), monitors(), tqdm.tqdm.monitor.report(), tqdm.tqdm.monitor.is_alive()
    print("child: painted anew, threads afterwards, says that it runs, runs:", *of_child, flush=True)
    os._exit(of_child != (False, [], True, False))
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert of_parent == (True, ["TMonitor"])
assert status == 0
CODE
"$directory/venv/bin/python" "$directory/bars.py"
