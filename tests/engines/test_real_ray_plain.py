"""Applications written with `from ray import serve`, as they are, on a real Ray 2.60: those fail that the check flags."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from servd.engines.ray.check import check_code
from servd.engines.ray.findings import exit_code
from tests.engines.clusters import RAY, RAY_PORT, ROOT, Head, needs_ray, one_node

pytestmark = needs_ray
APPS = ROOT / "tests" / "apps" / "ray_style"
JSON = {"content-type": "application/json"}
Ask = dict[str, Any]
# file -> application -> import path and requests, with the status of each where it works
APPLICATIONS: dict[str, dict[str, tuple[str, list[tuple[int, Ask]]]]] = {
    "app_in_init.py": {"store": ("app_in_init:store", [(200, {"path": "/name"}), (200, {"path": "/late/name"})])},
    "autoscaled.py": {"autoscaled": ("autoscaled:app", [(200, {"path": "/send"})])},
    "batching.py": {"batching": ("batching:app", [(200, {"path": "?number=1"})])},
    "conditional.py": {"conditional": ("conditional:app", [(200, {"path": "/route", "body": '["ADD", 5]'})])},
    "front_page.py": {"front_page": ("front_page:app", [(201, {"path": "", "body": '{"text": "four"}'})])},
    "fruit_graph.py": {"fruit": ("fruit_graph:app", [(200, {"path": "", "body": '["MANGO", 2]'})])},
    "multiplexed.py": {
        "multiplexed": ("multiplexed:app", [(200, {"path": "", "headers": {"serve_multiplexed_model_id": "one"}})]),
        "upstream": ("multiplexed:upstream", [(200, {"path": "?models=a,b,a"})]),
    },
    "old_handles.py": {"old_handles": ("old_handles:app", [(200, {"path": "?name=Ray"})])},
    "package_app/text.py": {
        "text": ("package_app.text:build", [(200, {"path": "/", "body": '{"text": "one two"}', "headers": JSON})])
    },
    "shop/main.py": {
        "shop": (
            "shop.main:build",
            [(200, {"path": "/order", "body": '{"fruit": "kiwi", "amount": 1}', "headers": JSON})],
        )
    },
    "streaming.py": {
        "streaming": ("streaming:app", [(200, {"path": "?max=2"}), (200, {"path": "?max=2&generator"})]),
        "ticker": ("streaming:ticker", [(200, {"path": ""})]),
    },
}
SCRIPTS = {
    "script_legacy.py": [str(APPS / "script_legacy.py")],
    "script_today.py": [str(APPS / "script_today.py"), str(RAY_PORT)],
    "shop/main.py": ["-m", "shop.main", str(RAY_PORT)],
}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with one_node() as cluster:
        yield cluster


def flagged(file: str) -> bool:
    return exit_code(check_code(str(APPS / file))) == 1


def test_those_applications_fail_that_are_flagged(head: Head) -> None:
    apps = {name: app for of in APPLICATIONS.values() for name, app in of.items()}
    path = head.folder / "serve.yaml"
    listed = [
        {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": import_path,
            "runtime_env": {"working_dir": str(APPS)},
            **({"args": {"language": "de"}} if name == "text" else {}),
        }
        for name, (import_path, _) in apps.items()
    ]
    path.write_text(json.dumps({"http_options": {"host": "127.0.0.1"}, "applications": listed}))
    # nothing is listed: what the code alone makes of it. Some fail, so the command does
    assert head.servd("deploy", str(path), "--wait", "--timeout", "500", "--force", "--no-build")[0] == 1
    states = {name: app["status"] for name, app in head.status().items()}
    assert set(states.values()) == {"RUNNING", "DEPLOY_FAILED"}, states

    def fails(name: str) -> bool:
        asks = apps[name][1]
        found = [head.get(**{**ask, "path": f"/{name}{ask['path']}"}) for _, ask in asks]
        return states[name] != "RUNNING" or [one[0] for one in found] != [status for status, _ in asks]

    failed = {file: any(map(fails, of)) for file, of in APPLICATIONS.items()}
    assert failed == {file: flagged(file) for file in APPLICATIONS}


@pytest.mark.parametrize("file", SCRIPTS)
def test_those_programs_fail_that_are_flagged(head: Head, file: str) -> None:
    # after the documents: a program's folder precedes the code of every application that is deployed later
    variables = ["env", "-u", "PYTHONPATH", "-C", str(APPS), "RAY_ADDRESS=127.0.0.1:6379"]
    code, out, err = head.run(*variables, f"{RAY}/python", *SCRIPTS[file])
    assert (code != 0) is flagged(file), out + err
