"""Make `VERSION.tar.gz`: what a daemon of the installed servd leaves behind when it is killed while it serves.

`PYTHONPATH=CHECKOUT_OF_THAT_VERSION python tests/system/kept_state/make.py VERSION`, with Python 3.11: applications that were
shipped by value are read by the minor version that wrote them. VERSION may name a commit as well: `0.1.0-a3dc8d8`. The archive
holds the state directory (goal, code by value, snapshots) and the facts of the socket directory. Stores name absolute paths,
so the state lies where `HOME` says.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

from servd.ground.settings import socket_dir_for  # in 0.1.0: servd.settings

HOME = Path("/tmp/servd-kept-state")
WORDS = """
from servd import deployment

@deployment(user_config={"tail": "!"})
class Word:
    def __init__(self, word):
        self.word = word

    def reconfigure(self, config):
        self.tail = config["tail"]

    def __call__(self, request):
        return self.word + self.tail

app = Word.bind("snapshot")
"""
DOCUMENT = """
applications:
- name: words
  route_prefix: /words
  import_path: words:app
  runtime_env: {working_dir: code}
  deployments:
  - {name: Word, num_replicas: 2}
"""
# everything that a shipped application can hold of servd: options, handles, a class with routes, batches, models, a graph
SHIPPED = """
from fastapi import FastAPI
import servd
from servd.dag import InputNode
from servd.drivers import DAGDriver
from servd.handle import DeploymentHandle

api = FastAPI()

@servd.deployment(ray_actor_options={"num_cpus": 0}, user_config={"tail": "?"})
class Tail:
    def reconfigure(self, config):
        self.tail = config["tail"]

    @servd.batch(max_batch_size=4)
    async def add(self, words):
        return [word + self.tail for word in words]

    @servd.multiplexed(max_num_models_per_replica=2)
    async def model(self, name):
        return name

@servd.deployment
@servd.ingress(api)
class Front:
    def __init__(self, tail: DeploymentHandle):
        self.tail = tail

    @api.get("/")
    async def root(self, word: str = "shipped"):
        return await self.tail.add.remote(word)

@servd.deployment
def twice(word):
    return word * 2

with InputNode() as word:
    graph = DAGDriver.bind(twice.bind(word), http_adapter="servd.http_adapters.json_request")

servd.run(Front.bind(Tail.bind()), name="shipped", route_prefix="/shipped")
servd.run(graph, name="graph", route_prefix="/graph")
"""


def keep(archive: tarfile.TarFile, state: Path, sockets: Path) -> None:
    """The files of a living daemon, as a power cut would leave them."""
    for path in sorted(state.rglob("*")):
        is_kept = path.suffix not in (".log", ".lock", ".pyc") and "program" not in path.parts
        if path.is_file() and is_kept:
            archive.add(path, str(Path("state", path.relative_to(state))))
    for path in sorted(sockets.glob("facts.db*")):
        archive.add(path, f"sockets/{path.name}")


def main(version: str) -> None:
    """Write the archive beside this file."""
    shutil.rmtree(HOME, ignore_errors=True)
    code, state = HOME / "code", HOME / "state"
    code.mkdir(parents=True)
    (code / "words.py").write_text(WORDS)
    (HOME / "document.yaml").write_text(DOCUMENT)
    (HOME / "ship.py").write_text(SHIPPED)
    about = {**os.environ, "SERVD_STATE_DIR": str(state)}
    servd = [sys.executable, "-m", "servd"]
    ports = ["--http-port", "18111", "--admin-port", "18112"]
    subprocess.run([*servd, "start", "--detach", "--state-dir", str(state), *ports], check=True)
    try:
        deploy = [*servd, "deploy", "--wait", "-a", "http://127.0.0.1:18112", "document.yaml"]
        subprocess.run(deploy, check=True, cwd=HOME, env=about)
        subprocess.run([sys.executable, "ship.py"], check=True, cwd=HOME, env=about)
        with tarfile.open(Path(__file__).parent / f"{version}.tar.gz", "w:gz") as archive:
            keep(archive, state, Path(socket_dir_for(str(state))))
    finally:
        os.kill(int((state / "daemon.lock").read_text().split()[0]), signal.SIGKILL)
    shutil.rmtree(HOME)


if __name__ == "__main__":
    main(sys.argv[1])
