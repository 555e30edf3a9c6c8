"""What commands do with a real Ray 2.60: set SERVD_TEST_RAY to the `bin` folder of an environment that has `ray[serve]`."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from servd.engines.ray.packing import MAX_UPLOAD_BYTES
from tests.engines.clusters import HEAD, ROOT, TOKEN, Head, needs_ray, one_node
from tests.fakes import wait_until

APPS = ROOT / "tests" / "apps" / "ray_style"
pytestmark = needs_ray
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
ORDER = json.dumps({"fruit": "mango", "amount": 3})
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with one_node() as cluster:
        yield cluster


def write(head: Head, language: str, cpus: float = 0.1) -> Path:
    path = head.folder / "serve.yaml"
    path.write_text(DOCUMENT % {"apps": APPS, "language": language, "cpus": cpus})
    return path


def text(head: Head) -> str:
    body = head.get("/text/", body=json.dumps({"text": "one two three"}), headers=JSON)[2]
    return str(json.loads(body))


def order(head: Head) -> str:
    return head.get("/shop/order", body=ORDER, headers=JSON)[2]


def test_a_cluster_serves_what_servd_serves(head: Head) -> None:
    path = write(head, "de")
    assert "Uploaded servd-" in head.deploy(path)
    assert text(head) == "de: ONE TWO"
    assert json.loads(order(head)) == {"price": 30}
    assert head.servd("diff", str(path))[:2] == (0, f"{path} is what runs on the Ray cluster at {HEAD}.\n")
    before = head.pids()
    assert len(before) == 7
    # the same again: nothing is uploaded, nothing restarts
    assert "Uploaded" not in head.deploy(path)
    assert head.pids() == before
    # another user_config: in place
    write(head, "fr")
    code, out, _ = head.servd("diff", str(path), "--exit-code")
    assert (code, "-      language: de" in out, "+      language: fr" in out) == (3, True, True), out
    head.deploy(path)
    asyncio.run(wait_until(lambda: text(head) == "fr: ONE TWO", 30))
    assert head.pids() == before
    assert "language: fr" in head.servd("config", "--name", "text")[1]


def test_tokens(head: Head) -> None:
    assert "401: it wants a token" in head.servd("status", token="")[2]
    refused = head.servd("status", token="another-token-0123456789")[2]
    assert "403: it refuses the token of RAY_AUTH_TOKEN" in refused
    assert "another-token" not in refused
    # where Ray's own clients have it
    (head.folder / ".ray").mkdir()
    (head.folder / ".ray" / "auth_token").write_text(TOKEN)
    assert head.servd("status", token="")[0] == 0


def test_want_of_cpus_is_told(head: Head) -> None:
    code, out, err = head.servd("deploy", str(write(head, "fr", cpus=500)), "--wait", "--timeout", "45")
    assert code == 1
    assert "scheduled" in out + err
    assert "Translator" in out + err
    # the old replica served all the while
    assert text(head) == "fr: ONE TWO"
    head.deploy(write(head, "fr"))


def test_more_than_an_upload_may_have_is_told_before_it_begins(head: Head) -> None:
    code = head.folder / "large"
    code.mkdir()
    (code / "m.py").write_text("from ray import serve\n")
    (code / "data.bin").write_bytes(os.urandom(101 * 2**20))
    path = head.folder / "large.yaml"
    path.write_text(f"applications: [{{name: large, import_path: 'm:a', runtime_env: {{working_dir: {code}}}}}]\n")
    for force in ((), ("--force",)):
        status, out, err = head.servd("deploy", str(path), "--no-build", *force)
        assert (status, "more than 100 MiB as an archive" in err, "Uploaded" in out) == (1, True, False), out + err
    # and that is what the cluster takes
    assert [put(head, size) for size in (MAX_UPLOAD_BYTES, MAX_UPLOAD_BYTES + 1)] == ["200", "413"]
    assert sorted(head.status()) == ["shop", "text"]


def put(head: Head, size: int) -> str:
    data = head.folder / "body.bin"
    with open(data, "wb") as file:
        file.truncate(size)
    url = f"{HEAD}/api/packages/gcs/servd-size-{size}.zip"
    token = f"Authorization: Bearer {TOKEN}"
    code, out, err = head.run(
        "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", token, "-H", "Expect:", "-T", str(data), url
    )
    data.unlink()
    assert code == 0 or out == "413", err
    return out


def test_the_data_port_stays_as_it_is(head: Head) -> None:
    path = write(head, "fr")
    path.write_text(path.read_text().replace("port: 8000", "port: 8001"))
    code, _, err = head.servd("deploy", str(path))
    assert (code, "port: 8000 -> 8001" in err) == (1, True), err


START_S = 15
VERSIONED = """\
http_options: {host: 127.0.0.1, port: 8000}
applications:
- name: versioned
  route_prefix: /versioned
  import_path: own:versioned
  runtime_env: {working_dir: %s, env_vars: {VERSION: "%s", START_S: "%d"}}
"""


def test_requests_go_on_while_a_new_version_starts(head: Head) -> None:
    path, done = head.folder / "versioned.yaml", head.folder / "deployed"
    code = ROOT / "tests" / "engines" / "code"
    path.write_text(VERSIONED % (code, "one", START_S))
    head.deploy(path)
    found: list[list[object]] = []
    asking = threading.Thread(target=lambda: found.extend(head.do("meanwhile", path="/versioned", until=str(done))))
    asking.start()
    try:
        path.write_text(VERSIONED % (code, "two", START_S))
        head.deploy(path)
        asyncio.run(wait_until(lambda: head.get("/versioned")[2] == "two", 60))
    finally:
        done.touch()
        asking.join()
    assert {status for status, *_ in found} == {200}
    versions = [body for _, body, _ in found]
    assert set(versions) == {"one", "two"}
    # nobody waited for a constructor
    assert max(float(str(seconds)) for *_, seconds in found) < START_S


def test_one_application_goes_and_then_all(head: Head) -> None:
    head.deploy(write(head, "fr"))
    code, out, err = head.servd("delete", "text")
    assert code == 0, out + err
    assert json.loads(order(head)) == {"price": 30}
    assert list(head.status()) == ["shop"]
    assert head.servd("shutdown", "--yes")[0] == 0
    assert head.status() == {}


def test_an_application_that_does_not_start_says_why(head: Head) -> None:
    code = head.folder / "broken"
    code.mkdir()
    (code / "m.py").write_text(
        "import servd\n@servd.deployment(ray_actor_options={'num_cpus': 0.1})\nclass D:\n"
        "    def __init__(self): raise OSError('no weights')\na = D.bind()\n"
    )
    path = head.folder / "broken.yaml"
    path.write_text(
        f"http_options: {{host: 127.0.0.1}}\napplications: [{{name: broken, import_path: 'm:a', "
        f"runtime_env: {{working_dir: {code}}}, deployments: [{{name: D}}]}}]\n"
    )
    code_, _, err = head.servd("deploy", str(path), "--wait", "--timeout", "120")
    assert (code_, "no weights" in err) == (1, True), err
    assert head.servd("shutdown", "--yes")[0] == 0


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
- {name: model, route_prefix: /model, import_path: "own:model", runtime_env: {working_dir: %(code)s}}
- {name: batched, route_prefix: /batched, import_path: "own:batched", runtime_env: {working_dir: %(code)s}}
- {name: alone, route_prefix: /alone, import_path: "own:alone", runtime_env: {working_dir: %(code)s}}
- {name: outer, route_prefix: /outer, import_path: "own:outer", runtime_env: {working_dir: %(code)s},
   deployments: [{name: Outer, user_config: {word: file}}]}
"""


def test_code_of_servds_own_answers_as_on_servd(head: Head) -> None:
    path = head.folder / "own.yaml"
    path.write_text(OWN % {"fruit": ROOT / "examples" / "fruit", "code": ROOT / "tests" / "engines" / "code"})
    head.deploy(path)
    assert head.get("/fruit", body='["MANGO", 2]')[2] == "14"
    assert head.get("/fruit", body='["KIWI", 2]')[2] == "-1"
    assert head.get("/math", body='["ADD", 10]')[2] == "15 pizzas please!"
    assert head.get("/math", body='["MUL", 10]')[2] == "-20 pizzas please!"
    assert json.loads(head.get("/outer")[2]) == {
        "word": "file", "name": "Outer", "echo": [3], "two steps": 4, "request": "/outer", "stream": [0, 1, 2], "error": "no x",
    }  # fmt: skip
    assert head.get("/ticks")[2] == '{"tick": 0}{"tick": 1}{"tick": 2}'
    assert head.get("/slow")[2] == "The time limit of 0.5 s passed while in the handler."
    assert head.get("/fast/number?value=3")[2] == '{"value":3}'
    assert head.get("/fast/late")[2] == '"late"'
    assert set(head.at_once("/sync", 20)) == {"1"}
    assert set(head.at_once("/together?count=20", 20)) == {"20"}
    # the same again: nothing restarts, and servd's package is there already
    before = head.pids()
    assert "Uploaded" not in head.deploy(path)
    assert head.pids() == before


def test_streams_and_websockets_of_servds_own_code(head: Head) -> None:
    stream = head.get("/fast/stream?count=100")
    assert stream[:2] == (200, "text/plain; charset=utf-8")
    parts = [f"part {number} of 100, \u00e9\n" for number in range(100)]
    assert stream[2].encode("latin-1").decode() == "".join(parts)
    assert head.get("/fast/echo", say=["one", [0, 1, 255], "x" * 100_000, "bye"], subprotocols=["other", "own"]) == (
        4001, "said bye", ["own", "ONE", [255, 1, 0], "X" * 100_000],
    )  # fmt: skip


def test_a_preloaded_model_batches_and_back_pressure(head: Head) -> None:
    assert json.loads(head.get("/model?row=12")[2]) == {"square": 144, "starts": 1}
    assert head.at_once("/batched", 32) == ["16"] * 32
    folder = head.folder / "alone"
    folder.mkdir()
    found = head.do(
        "pressed", path=f"/alone?folder={folder}", count=5, refused=4, began=f"{folder}/began", go=f"{folder}/go"
    )
    assert sorted(found) == [200, 200, 503, 503, 503, 503]
