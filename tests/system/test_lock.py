"""The lock on a whole daemon: what another user of the host can reach of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.system.running_daemon import a_daemon, eventually, settings_in

NOBODY = 65534
V2 = "/api/serve/applications/"

INTRUDER = """
import encodings.idna, json, os, socket, sys
wish = json.loads(sys.argv[1])
os.setgroups([]); os.setgid(wish["uid"]); os.setuid(wish["uid"])

def http(port, line, body=b"", wait=True):
    s = socket.create_connection(("127.0.0.1", port), 10)
    s.sendall(b"%b HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (line.encode(), len(body), body))
    return s.recv(100).split()[1].decode() if wait else s.close()

def connect(path):
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            socket.socket(socket.AF_UNIX, kind).connect(path)
    except OSError as error:
        return type(error).__name__
    return "connected"

def read(path):
    try:
        return os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
    except OSError as error:
        return type(error).__name__

document = b'{"applications": []}'
# gone before anybody looks: the kernel then shows the owner as uid 0
for _ in range(20):
    http(wish["admin"], "PUT " + wish["path"], document, wait=False)
print(json.dumps({
    "admin": [http(wish["admin"], verb + " " + wish["path"], document) for verb in ("GET", "PUT", "DELETE")],
    "metrics": [http(wish["metrics"], "GET " + path) for path in ("/metrics", wish["path"])],
    "sockets": sorted({connect(path) for path in wish["sockets"]}),
    "files": sorted({read(path) for path in wish["files"]}),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_another_user_gets_the_metrics_port_and_nothing_else(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, metrics_port=free_port())
    # the way there is open, as with a state directory below /var/lib
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    with a_daemon(settings) as daemon:
        assert daemon.ask("GET", V2)[0] == 200
        sockets = [str(path) for path in Path(settings.socket_dir).iterdir() if path.is_socket()]
        state = Path(settings.state_dir)
        files = [settings.state_dir, settings.socket_dir, str(state / "daemon.lock"), settings.log_dir]
        files += [str(path) for path in state.iterdir()]
        assert len(sockets) > 1
        wish = {
            "uid": NOBODY,
            "admin": settings.admin_port,
            "metrics": settings.metrics_port,
            "path": V2,
            "sockets": sockets,
            "files": files,
        }
        done = subprocess.run(
            [sys.executable, "-c", INTRUDER, json.dumps(wish)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert found == {
            "admin": ["403", "403", "403"],
            "metrics": ["200", "404"],
            "sockets": ["PermissionError"],
            "files": ["PermissionError"],
        }
        assert daemon.status()["revision"] == 0
        # whoever is let in stands in the audit trail, with the way they came
        assert daemon.ask("PUT", V2, {"applications": []}) == (200, "")
        line = "audit revision=1 previous=0 origin=PUT /api/serve/applications/ by root (uid 0) from the Unix socket"
        logs = Path(settings.log_dir) / "serve"
        eventually(lambda: any(line in path.read_text() for path in logs.glob("controller_*.log")))
