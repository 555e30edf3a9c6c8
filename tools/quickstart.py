"""`make run`: start the daemon, deploy the fruit stand, ask for a price, serve until Ctrl-C."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from servd.daemon.launch import start_tied
from servd.exceptions import ServdError
from servd.ground.settings import Settings, socket_dir_for

ROOT = Path(__file__).parent.parent
SERVD = Path(sys.executable).parent / "servd"
ORDER = ["MANGO", 2]


def main() -> int:
    """0 after Ctrl-C or SIGTERM; 1 if the daemon did not come up or the deploy failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http-port", default="8000")
    parser.add_argument("--admin-port", default="52365")
    parser.add_argument("--state-dir", default=".cache/state")
    options = parser.parse_args()
    http_port, admin_port = port_of("HTTP_PORT", options.http_port), port_of("ADMIN_PORT", options.admin_port)
    own_the_terminal()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state_dir = str((ROOT / options.state_dir).absolute())
    os.environ.setdefault("SERVD_LOG_TO_STDERR", "0")  # the log files have it all; here it would hide the tour
    settings = Settings(
        state_dir=state_dir,
        socket_dir=socket_dir_for(state_dir),
        http_port=http_port,
        admin_port=admin_port,
        start_dir=str(ROOT),
    )
    try:
        with start_tied(settings) as daemon:
            try:
                if not show(http_port, admin_port, state_dir):
                    return 1
                while daemon.is_running:
                    # a signal just before `pause()` would be noted, and heard when that ends: never
                    time.sleep(0.5)
                print("\nThe daemon has ended: its logs say why, unless `servd stop` did that.", flush=True)
            except KeyboardInterrupt:
                print("\nStopping.", flush=True)
    except KeyboardInterrupt:
        return 0
    except ServdError:
        print("If a port is taken, choose another: make run HTTP_PORT=8080 ADMIN_PORT=52366", file=sys.stderr)
        return 1
    return 0


def port_of(name: str, text: str) -> int:
    """The number of a port; ends the program with one line if it is none."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    sys.exit(f"{name}={text} is no port: give a number from 1 to 65535, as in make run {name}=8080")


def show(http_port: int, admin_port: int, state_dir: str) -> bool:
    """Deploy, ask, print."""
    document = Path("configs/fruit.yaml")
    print(f"$ servd deploy --wait {document}", flush=True)
    command = [SERVD, "deploy", "--wait", document]
    environment = {**os.environ, "SERVD_STATE_DIR": state_dir}
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        return False
    url = f"http://127.0.0.1:{http_port}/"
    print(f"\n$ curl -X POST -d '{json.dumps(ORDER)}' {url}")
    request = urllib.request.Request(url, data=json.dumps(ORDER).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(answer.read().decode())
    print(f"\nThe price of two mangos. The admin API: http://127.0.0.1:{admin_port}/api/serve/applications/")
    print(f"Logs: {state_dir}/logs. Serving until Ctrl-C.", flush=True)
    return True


def own_the_terminal() -> None:
    """Become the terminal's foreground group: else make would also get Ctrl-C and report an interrupt."""
    if not sys.stdin.isatty():
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())


if __name__ == "__main__":
    sys.exit(main())
