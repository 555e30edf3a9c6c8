"""Against a real Ray 2.60: set SERVD_TEST_RAY to the `bin` folder of an environment that has `ray[serve]`."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.clusters import a_folder
from tests.fakes import wait_until

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "apps" / "ray_style"
RAY = os.environ.get("SERVD_TEST_RAY", "")
HEAD, TOKEN = "http://127.0.0.1:8265", "token-of-the-test-0123456789"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not RAY, reason="SERVD_TEST_RAY names no environment with ray[serve]"),
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="network namespaces need root"),
]
DOCUMENT = """\
http_options: {host: 127.0.0.1, port: 8000}
applications:
- name: text
  route_prefix: /text
  import_path: package_app.text:build
  args: {language: de, max_words: 2}
  runtime_env: {working_dir: %(apps)s, excludes: ["*.txt"], env_vars: {A: b}}
  deployments:
  - {name: TextIngress, max_concurrent_queries: 7, ray_actor_options: {num_cpus: 0.1}}
  - {name: Summarizer, ray_actor_options: {num_cpus: 0.1, env_vars: {A: c}}}
  - {name: Translator, user_config: {language: "%(language)s"}, ray_actor_options: {num_cpus: %(cpus)s}}
- name: shop
  route_prefix: /shop
  import_path: shop.main:build
  runtime_env: {working_dir: %(apps)s, excludes: ["*.txt"]}
  deployments:
  - {name: Shop, num_replicas: 2, ray_actor_options: {num_cpus: 0.1}}
"""


class Room:
    """A network of its own with a one-node cluster that wants a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ, "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
            "SERVD_ENGINE": "ray", "SERVD_ADDRESS": HEAD, "RAY_worker_niceness": "0",
        }  # fmt: skip
        start = (
            f"ip link set lo up && exec {RAY}/python -m ray.scripts.scripts start --head --block --num-cpus 2 "
            f"--node-ip-address 127.0.0.1 --port 6379 --dashboard-port 8265 --temp-dir {folder}/r "
            "--disable-usage-stats --object-store-memory 100000000"
        )
        with open(folder / "ray.log", "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", start],
                env={**self.environment, "RAY_AUTH_TOKEN": TOKEN},
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=folder,
            )

    def run(self, *command: str, token: str = TOKEN) -> tuple[int, str, str]:
        # not for the cluster: its own `servd` would be ours
        environment = {**self.environment, "PYTHONPATH": str(ROOT), **({"RAY_AUTH_TOKEN": token} if token else {})}
        done = subprocess.run(
            ["nsenter", "-t", str(self.process.pid), "-n", *command],
            env=environment, capture_output=True, text=True, timeout=600, check=False, cwd=self.folder,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def servd(self, *arguments: str, token: str = TOKEN) -> tuple[int, str, str]:
        return self.run(sys.executable, "-m", "servd", *arguments, token=token)

    def ask(self, path: str, body: object) -> object:
        code, out, err = self.run(
            "curl",
            "-sS",
            "-H",
            "content-type: application/json",
            "-d",
            json.dumps(body),
            f"http://127.0.0.1:8000{path}",
        )
        assert code == 0, err
        return json.loads(out)

    def get(self, path: str, *options: str) -> str:
        code, out, err = self.run("curl", "-sS", "-m", "30", *options, f"http://127.0.0.1:8000{path}")
        assert code == 0, err
        return out

    def at_once(self, path: str, count: int) -> list[str]:
        asked = [f"http://127.0.0.1:8000{path}"] * count
        one = "for url in {}; do (echo $(curl -sS -m 60 $url)) & done; wait".format(" ".join(asked))
        return self.run("sh", "-c", one)[1].split()

    def pids(self) -> list[int]:
        apps = json.loads(self.servd("status", "--format", "json")[1])
        return sorted(
            replica["pid"]
            for app in apps.values()
            for one in app["deployments"].values()
            for replica in one["replicas"]
        )

    def write(self, language: str, cpus: float = 0.1) -> str:
        path = self.folder / "serve.yaml"
        path.write_text(DOCUMENT % {"apps": APPS, "language": language, "cpus": cpus})
        return str(path)


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with a_folder() as folder:
        room = Room(folder)
        try:
            asyncio.run(wait_until(lambda: room.servd("status")[0] == 0, 120))
            yield room
        finally:
            room.process.kill()
            room.process.wait()


def test_a_cluster_serves_what_servd_serves(room: Room) -> None:
    path = room.write("de")
    code, out, err = room.servd("deploy", path, "--wait", "--timeout", "150")
    assert code == 0, out + err
    assert "Uploaded servd-" in out
    assert room.ask("/text/", {"text": "one two three"}) == "de: ONE TWO"
    assert room.ask("/shop/order", {"fruit": "mango", "amount": 3}) == {"price": 30}
    assert room.servd("diff", path)[:2] == (0, f"{path} is what runs on the Ray cluster at {HEAD}.\n")
    before = room.pids()
    assert len(before) == 7
    # the same again: nothing is uploaded, nothing restarts
    code, out, err = room.servd("deploy", path, "--wait", "--timeout", "60")
    assert (code, "Uploaded" in out) == (0, False), out + err
    assert room.pids() == before
    # another user_config: in place
    code, out, err = room.servd("deploy", room.write("fr"), "--wait", "--timeout", "60")
    assert code == 0, out + err
    asyncio.run(wait_until(lambda: room.ask("/text/", {"text": "one two three"}) == "fr: ONE TWO", 30))
    assert room.pids() == before
    assert "language: fr" in room.servd("config", "--name", "text")[1]


def test_tokens(room: Room) -> None:
    assert "401: it wants a token" in room.servd("status", token="")[2]
    assert "403: it refuses the token of RAY_AUTH_TOKEN" in room.servd("status", token="another-token-0123456789")[2]


OWN = """\
http_options: {host: 127.0.0.1, port: 8000}
applications:
- {name: fruit, route_prefix: /fruit, import_path: fruit.deployment_graph,
   runtime_env: {working_dir: %(fruit)s}, deployments: [
    {name: MangoStand, user_config: {price: 7}, ray_actor_options: {num_cpus: 0.01}},
    {name: OrangeStand, ray_actor_options: {num_cpus: 0.01}}, {name: PearStand, ray_actor_options: {num_cpus: 0.01}},
    {name: FruitMarket, num_replicas: 1, ray_actor_options: {num_cpus: 0.01}},
    {name: DAGDriver, ray_actor_options: {num_cpus: 0.01}}]}
- {name: math, route_prefix: /math, import_path: conditional_dag.serve_dag,
   runtime_env: {working_dir: %(fruit)s}, deployments: [
    {name: Adder, ray_actor_options: {num_cpus: 0.01, env_vars: {override_increment: "5"}}}]}
- {name: sync, route_prefix: /sync, import_path: "own:sync", runtime_env: {working_dir: %(code)s}}
- {name: together, route_prefix: /together, import_path: "own:together", runtime_env: {working_dir: %(code)s}}
- {name: slow, route_prefix: /slow, import_path: "own:slow", runtime_env: {working_dir: %(code)s}}
- {name: ticks, route_prefix: /ticks, import_path: "own:ticks", runtime_env: {working_dir: %(code)s}}
- {name: fast, route_prefix: /fast, import_path: "own:fast", runtime_env: {working_dir: %(code)s}}
- {name: outer, route_prefix: /outer, import_path: "own:outer", runtime_env: {working_dir: %(code)s},
   deployments: [{name: Outer, user_config: {word: file}}]}
"""


def test_code_of_servds_own_answers_as_on_servd(room: Room) -> None:
    path = room.folder / "own.yaml"
    path.write_text(OWN % {"fruit": ROOT / "examples" / "fruit", "code": ROOT / "tests" / "engines" / "code"})
    code, out, err = room.servd("deploy", str(path), "--wait", "--timeout", "500")
    assert code == 0, out + err
    assert room.ask("/fruit", ["MANGO", 2]) == 14
    assert room.ask("/fruit", ["KIWI", 2]) == -1
    assert room.get("/math", "-d", '["ADD", 10]') == "15 pizzas please!"
    assert room.get("/math", "-d", '["MUL", 10]') == "-20 pizzas please!"
    assert json.loads(room.get("/outer")) == {
        "word": "file", "name": "Outer", "echo": [3], "two steps": 4, "request": "/outer", "stream": [0, 1, 2], "error": "no x",
    }  # fmt: skip
    assert room.get("/ticks") == '{"tick": 0}{"tick": 1}{"tick": 2}'
    assert room.get("/slow") == "The time limit of 0.5 s passed while in the handler."
    assert room.get("/fast/number?value=3") == '{"value":3}'
    assert room.get("/fast/late") == '"late"'
    assert set(room.at_once("/sync", 8)) == {"1"}
    assert set(room.at_once("/together", 8)) == {"8"}
    # the same again: nothing restarts, and servd's package is there already
    before = room.pids()
    code, out, err = room.servd("deploy", str(path), "--wait", "--timeout", "60")
    assert (code, "Uploaded" in out) == (0, False), out + err
    assert room.pids() == before


def test_want_of_cpus_is_told(room: Room) -> None:
    code, out, err = room.servd("deploy", room.write("fr", cpus=50), "--wait", "--timeout", "45")
    assert code == 1
    assert "scheduled" in out + err
    assert "Translator" in out + err
    # the old replica served all the while
    code, out, err = room.servd("deploy", room.write("fr"), "--wait", "--timeout", "60")
    assert code == 0, out + err


def test_the_data_port_stays_as_it_is(room: Room) -> None:
    path = Path(room.write("fr"))
    path.write_text(path.read_text().replace("port: 8000", "port: 8001"))
    code, _, err = room.servd("deploy", str(path))
    assert (code, "port: 8000 -> 8001" in err) == (1, True), err


def test_one_application_goes_and_then_all(room: Room) -> None:
    code, out, err = room.servd("delete", "text")
    assert code == 0, out + err
    assert room.ask("/shop/order", {"fruit": "mango", "amount": 3}) == {"price": 30}
    assert list(json.loads(room.servd("status", "--format", "json")[1])) == ["shop"]
    assert room.servd("shutdown", "--yes")[0] == 0
    assert json.loads(room.servd("status", "--format", "json")[1]) == {}
