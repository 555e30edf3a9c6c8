"""A real Ray 2.60 on two nodes: code that only the head's machine has on disk runs on the other one."""

import json
from collections.abc import Iterator

import pytest

from tests.engines.clusters import RAY_PORT, ROOT, Head, needs_ray, two_nodes

pytestmark = needs_ray
CODE, FRUIT, PLAIN = (
    ROOT / "tests" / "engines" / "code",
    ROOT / "examples" / "fruit",
    ROOT / "tests" / "apps" / "ray_style",
)
DOCUMENT = f"""\
http_options: {{host: 0.0.0.0}}
applications:
- {{name: math, route_prefix: /math, import_path: conditional_dag.serve_dag, runtime_env: {{working_dir: {FRUIT}}}}}
- {{name: model, route_prefix: /model, import_path: "own:model", runtime_env: {{working_dir: {CODE}}}}}
- {{name: text, route_prefix: /text, import_path: "package_app.text:build", args: {{language: de}},
   runtime_env: {{working_dir: {PLAIN}}}}}
"""
# the node that runs them has neither these nor servd
HIDDEN = [ROOT / "servd", ROOT / "tests", ROOT / "examples"]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with two_nodes(HIDDEN) as cluster:
        yield cluster


def test_code_of_the_heads_machine_runs_on_the_other(head: Head) -> None:
    path = head.folder / "serve.yaml"
    path.write_text(DOCUMENT)
    head.deploy(path)
    replicas = head.replicas()
    assert {replica["node_ip"] for replica in replicas} == {"10.77.0.2"}
    # every proxy answers as soon as the command has ended, that of the node without the code too
    for host in ("10.77.0.1", "10.77.0.2"):
        pizzas = ["curl", "-sS", "-m", "60", "-d", '["ADD", 2]', f"http://{host}:{RAY_PORT}/math"]
        assert head.run(*pizzas)[1] == "4 pizzas please!", host
        model = ["curl", "-sS", "-m", "60", f"http://{host}:{RAY_PORT}/model?row=12"]
        assert json.loads(head.run(*model)[1])["square"] == 144
        text = json.dumps({"text": "one two"})
        plain = ["curl", "-sS", "-m", "60", "-H", "content-type: application/json", "-d", text]
        assert json.loads(head.run(*plain, f"http://{host}:{RAY_PORT}/text/")[1]) == "de: ONE TWO"
