"""An import that hangs leaves its stack in the log."""

import subprocess
import sys
from pathlib import Path

from servd.ground.settings import fork_server_log
from tests.system.running_daemon import eventually

HANGING = """
import sys
from servd.replica import builder

builder.SLOW_START_S = 0.1

def hanging_import():
    with builder._stack_in_log_while_slow(type("Order", (), {"log_dir": sys.argv[1]})):
        sys.stdin.read()

hanging_import()
"""


def test_the_stack_is_in_the_log(tmp_path: Path) -> None:
    log = Path(fork_server_log(str(tmp_path)))
    log.parent.mkdir(parents=True, exist_ok=True)
    # a process of its own: of one with more than 100 threads not all are shown
    with subprocess.Popen([sys.executable, "-c", HANGING, str(tmp_path)], stdin=subprocess.PIPE) as process:
        eventually(lambda: log.exists() and "in hanging_import" in log.read_text())
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
