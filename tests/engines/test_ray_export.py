"""`servd export`: today's document, a RayService, one servd a pod."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from servd.engines.ray import manifests
from servd.engines.ray.check import read
from servd.engines.ray.described import DescribedApplication
from servd.engines.ray.export import ExportWish, kuberay, kubernetes, ray_document
from servd.engines.ray.findings import Severity
from servd.engines.ray.translated import ENTRY, moved_to, through_entry, todays_document
from servd.exceptions import ConfigError
from servd.schema import parse_v1, parse_v2
from tests.engines.crd import faults, ray_service_schema

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DEFAULTS = {"max_ongoing_requests": 100, "max_queued_requests": 10000, "max_surge_percent": 100}


def one_app(app: Mapping[str, Any], code: DescribedApplication | None = None) -> dict[str, Any]:
    found = todays_document({"applications": [{"import_path": "m:a", **app}]}, {"default": code} if code else {})
    return dict(found["applications"][0])


def deployment(entry: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    code = DescribedApplication("/", {"D": options or {}})
    found = one_app({"deployments": [{"name": "D", **entry}]}, code)["deployments"][0]
    return {key: item for key, item in found.items() if key != "name" and DEFAULTS.get(key) != item}


@pytest.mark.parametrize(
    ("entry", "options", "expected"),
    [
        ({}, {}, {}),
        ({"max_concurrent_queries": 7}, {}, {"max_ongoing_requests": 7}),
        ({"max_ongoing_requests": 7}, {"max_concurrent_queries": 9}, {"max_ongoing_requests": 7}),
        ({}, {"max_concurrent_queries": 320}, {"max_ongoing_requests": 320}),
        ({}, {"max_queued_requests": 4}, {"max_queued_requests": 4}),
        ({"max_surge_percent": 0}, {"max_surge_percent": 50}, {"max_surge_percent": 0}),
        ({"max_constructor_retry_count": 3}, {"max_surge_percent": 50}, {"max_surge_percent": 50}),
        ({"max_queued_requests": -1}, {}, {"max_queued_requests": -1}),
        (
            {"autoscaling_config": {"max_replicas": 3}}, {},
            {"autoscaling_config": {"max_replicas": 3, "target_ongoing_requests": 1.0}},
        ),
        (
            {"autoscaling_config": {"target_num_ongoing_requests_per_replica": 4}}, {},
            {"autoscaling_config": {"target_ongoing_requests": 4}},
        ),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 3}}, {}, {
            "num_replicas": "auto", "autoscaling_config": {"max_replicas": 3},
        }),
        (
            {}, {"autoscaling_config": {"max_replicas": 3}},
            {"autoscaling_config": {"max_replicas": 3, "target_ongoing_requests": 1.0}},
        ),
        ({"num_replicas": 2}, {"autoscaling_config": {"max_replicas": 3}}, {"num_replicas": 2}),
        ({"max_sync_threads": 3, "preload": True, "start_method": "fork", "is_driver_deployment": False}, {}, {}),
        (
            {"ray_actor_options": {"num_cpus": 0.5, "env_vars": {"A": "1", "B": "2"}, "object_store_memory": 1,
                                   "runtime_env": {"env_vars": {"A": "3"}}}}, {},
            {"ray_actor_options": {"num_cpus": 0.5, "runtime_env": {"env_vars": {"A": "3", "B": "2"}}}},
        ),
        ({"logging_config": {"log_level": "debug"}}, {}, {"logging_config": {"log_level": "DEBUG"}}),
        ({"user_config": {"a": 1}, "health_check_period_s": 3}, {}, {"user_config": {"a": 1}, "health_check_period_s": 3}),
    ],
)  # fmt: skip
def test_a_deployment_there(entry: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert deployment(entry, options) == expected


def test_all_deployments_are_listed_with_what_servd_has_by_default() -> None:
    code = DescribedApplication("/code", {"A": {}, "D": {}, "Z": {}})
    found = one_app({"deployments": [{"name": "D", "num_replicas": 2}]}, code)
    assert [entry["name"] for entry in found["deployments"]] == ["D", "A", "Z"]
    assert found["deployments"][1] == {"name": "A", **DEFAULTS}
    assert found["route_prefix"] == "/code"
    assert one_app({"route_prefix": "/x"}, code)["route_prefix"] == "/x"
    assert one_app({"deployments": [{"name": "D", "route_prefix": "/y"}]}, code)["route_prefix"] == "/y"


def test_a_name_that_the_code_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="'default' has no deployment 'E'; it has D"):
        one_app({"deployments": [{"name": "E"}]}, DescribedApplication("/", {"D": {}}))


def test_a_single_application_becomes_a_list_of_one() -> None:
    found = todays_document({"import_path": "m:a", "port": 9000, "runtime_env": {"excludes": ["x"], "pip": None}}, {})
    assert found == {
        "http_options": {"host": "127.0.0.1", "port": 9000},
        "applications": [
            {"name": "default", "route_prefix": "/", "import_path": "m:a", "runtime_env": {}, "deployments": []}
        ],
    }


def test_the_top_of_a_document_there() -> None:
    top = {
        "proxy_location": "NoServer",
        "http_options": {"port": 9000, "request_timeout_s": 3},
        "logging_config": {"log_level": "info"},
        "applications": [],
    }
    assert todays_document(top, {}) == {
        "proxy_location": "Disabled",
        "logging_config": {"log_level": "INFO"},
        "http_options": {"host": "127.0.0.1", "port": 9000, "request_timeout_s": 3},
        "applications": [],
    }
    assert todays_document(top, {}, host="0.0.0.0")["http_options"]["host"] == "0.0.0.0"


@pytest.mark.parametrize(
    ("code", "directories", "uri", "expected"),
    [
        ("local:///srv", ["/home/a"], "/home/a", "local:///srv"),
        ("local:///srv", ["/home/a"], "file:///home/a", "local:///srv"),
        ("https://h/a.zip", ["/home/a"], "/home/a", "https://h/a.zip"),
        ("local:///srv", ["/home/a", "/home/b/c"], "/home/b/c", "local:///srv/b/c"),
        ("local:///srv/", ["/home/a", "/home/ab"], "/home/ab", "local:///srv/ab"),
        ("local:///srv", ["/home/a"], "https://h/a.zip", "https://h/a.zip"),
        ("local:///srv", ["/home/a"], "local:///opt", "local:///opt"),
    ],
)
def test_where_the_code_is_there(code: str, directories: list[str], uri: str, expected: str) -> None:
    assert moved_to(code, directories)(uri) == expected


@pytest.mark.parametrize(
    ("document", "code", "expected"),
    [
        ([{"name": "D"}], {}, 1.0),
        ([{"name": "D"}], {("a", "D"): {"num_replicas": 3}}, 3.0),
        ([{"name": "D"}], {("a", "D"): {"autoscaling_config": {"max_replicas": 3}}}, 3.0),
        ([{"name": "D"}], {("a", "D"): {"num_replicas": 3, "ray_actor_options": {"num_cpus": 0.5}}}, 1.5),
        (
            [{"name": "D", "ray_actor_options": {"num_gpus": 1}}],
            {("a", "D"): {"ray_actor_options": {"num_cpus": 0}}},
            1.0,
        ),
        ([{"name": "D", "num_replicas": 4, "ray_actor_options": {"num_cpus": 0.5}}], {}, 2.0),
        ([{"name": "D", "num_replicas": "auto", "autoscaling_config": {"max_replicas": 6}}], {}, 6.0),
        ([{"name": "D", "num_replicas": 4, "ray_actor_options": {"num_cpus": 0}}], {}, 0.0),
    ],
)
def test_cpus_that_replicas_reserve(document: list[Any], code: dict[tuple[str, str], Any], expected: float) -> None:
    assert manifests.cpus_needed({"applications": [{"name": "a", "deployments": document}]}, code) == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_ray_service_is_one_of_the_operators(path: Path) -> None:
    wish = ExportWish("local:///srv/app", "registry/app:1", builds=False)
    text, found = kuberay(read(str(path)), "fruit-stand", wish)
    resource = yaml.safe_load(text)
    assert list(faults(resource, ray_service_schema())) == []
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(resource["spec"]["serveConfigV2"])
    assert config["http_options"]["host"] == "0.0.0.0"
    assert {app["runtime_env"]["working_dir"] for app in config["applications"]} == {"local:///srv/app"}
    assert not [one for one in found if one.severity != Severity.FAILS and "host" in one.what]


def damaged(resource: Any, *place: str | int, value: Any = None) -> Any:
    """Without the last of `place`, or with another value there."""
    found = json.loads(json.dumps(resource))
    owner = found
    for key in place[:-1]:
        owner = owner[key]
    owner.pop(place[-1], None)
    if value is not None:
        owner[place[-1]] = value
    return found


SPEC = ("spec", "rayClusterConfig")
HEAD, WORKERS = (*SPEC, "headGroupSpec"), (*SPEC, "workerGroupSpecs", 0)
CONTAINER = (*HEAD, "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("kind",), None, ".kind is missing"),
        (("spec", "serveConfig"), "", ".spec.serveConfig is unknown"),
        (("spec", "serveConfigV2"), {}, ".spec.serveConfigV2 is {}"),
        ((*HEAD, "template"), None, ".template is missing"),
        ((*HEAD, "rayStartParams"), {"num-cpus": 0}, ".rayStartParams.num-cpus is 0"),
        ((*WORKERS, "groupName"), None, ".groupName is missing"),
        ((*WORKERS, "minReplicas"), True, ".minReplicas is True"),
        ((*WORKERS, "maxReplicas"), 2**31, f".maxReplicas is {2**31}"),
        ((*CONTAINER, "resources", "limits"), {"cpu": "2 cores"}, ".limits.cpu is '2 cores'"),
        ((*CONTAINER, "ports", 0, "containerPort"), None, ".containerPort is missing"),
        ((*CONTAINER, "port"), 8000, ".port is unknown"),
    ],
)
def test_the_check_of_a_ray_service_is_one(place: tuple[str | int, ...], value: Any, expected: str) -> None:
    resource = manifests.ray_service("fruit", "i", "", port=8000, cpus=1)
    (found,) = faults(damaged(resource, *place, value=value), ray_service_schema())
    assert found.endswith(expected)


def test_one_servd_a_pod(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "import_path: m:a\nruntime_env: {working_dir: ., env_vars: {A: b}}\nport: 9000\n"
        "deployments:\n- {name: D, graceful_shutdown_timeout_s: 60}\n"
    )
    text, found = kubernetes(read(str(path)), "fruit", ExportWish("local:///srv/app", "i:1"))
    assert found == []
    config_map, deployment, service = yaml.safe_load_all(text)
    document = yaml.safe_load(config_map["data"]["serve.yaml"])
    assert document["runtime_env"] == {"working_dir": "local:///srv/app", "env_vars": {"A": "b"}}
    assert parse_v1(document)
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 75
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "http"}
    assert [volume for volume in pod["spec"]["volumes"] if "emptyDir" in volume]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    path.write_text("import_path: m:b\n")
    _, changed, _ = yaml.safe_load_all(kubernetes(read(str(path)), "fruit", ExportWish(image="i:1"))[0])
    digests = [one["spec"]["template"]["metadata"]["annotations"] for one in (deployment, changed)]
    assert digests[0] != digests[1]


def test_an_image_must_have_the_code(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("applications:\n- import_path: m:a\n  runtime_env: {working_dir: code}\n")
    _, (found,) = kubernetes(read(str(path)), "fruit", ExportWish(image="i:1"))
    assert (found.line, f"the image must have the code in {tmp_path}/code" in found.what) == (3, True)
    _, found_there = ray_document(read(str(path)), ExportWish(builds=False))
    assert any("must be on every node" in one.what for one in found_there)


@pytest.mark.parametrize("name", ["", "Fruit", "fruit_stand", "-fruit", "fruit-", "f" * 48])
def test_names_that_kubernetes_refuses(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a resource"):
        manifests.ray_service(name, "i", "", port=8000, cpus=1)


def test_an_archive_is_one_directory(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    apps = "".join(
        f"- {{name: {n}, import_path: m:a, route_prefix: /{n}, runtime_env: {{working_dir: {n}}}}}\n" for n in "ab"
    )
    path.write_text(f"applications:\n{apps}")
    with pytest.raises(ConfigError, match="an archive stands for one directory"):
        ray_document(read(str(path)), ExportWish("https://h/a.zip", builds=False))
    text, _ = ray_document(read(str(path)), ExportWish("local:///srv", builds=False))
    assert [app["runtime_env"]["working_dir"] for app in yaml.safe_load(text)["applications"]] == [
        "local:///srv/a",
        "local:///srv/b",
    ]


@pytest.mark.slow
def test_deployments_of_the_code_are_listed(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import os\nfrom ray import serve\n"
        "@serve.deployment(max_queued_requests=int(os.environ['BOUND']))\nclass A:\n"
        "    @serve.batch(max_batch_size=64, max_concurrent_batches=4, batch_wait_timeout_s=0)\n"
        "    async def many(self, items): return items\n"
        "@serve.deployment\nclass B: ...\n"
        "def build(args): return A.bind(*[B.options(name=f'B{n}').bind() for n in range(int(args['count']))])\n"
    )
    path = tmp_path / "serve.yaml"
    path.write_text(
        "applications:\n- import_path: m:build\n  args: {count: 2}\n"
        "  runtime_env: {working_dir: ., env_vars: {BOUND: '7'}}\n"
    )
    text, _ = ray_document(read(str(path)), ExportWish())
    document = yaml.safe_load(text)
    assert document["applications"][0]["deployments"] == [
        {"name": "B0", **DEFAULTS},
        {"name": "B1", **DEFAULTS},
        {"name": "A", **DEFAULTS, "max_ongoing_requests": 256, "max_queued_requests": 7},
    ]
    assert not os.path.exists(tmp_path / "__pycache__")
    (tmp_path / "m.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match=r"(?s)m:build does not load on this machine.*nothing_of_that_name"):
        ray_document(read(str(path)), ExportWish())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_servd_takes_its_own_document_back(path: Path) -> None:
    # what has no meaning here is left out first: servd has no such option
    value = yaml.safe_load(ray_document(read(str(path)), ExportWish("local:///srv", builds=False))[0])
    for app in value["applications"]:
        for entry in app["deployments"]:
            del entry["max_surge_percent"]
    assert parse_v2(value)


def test_files_that_a_document_names_are_read_here(tmp_path: Path) -> None:
    (tmp_path / "code" / "package").mkdir(parents=True)
    (tmp_path / "code" / "package" / "__init__.py").write_text("")
    (tmp_path / "code" / "needs.txt").write_text("one==1  # why\n-r more.txt\n")
    (tmp_path / "code" / "more.txt").write_text("two\n")
    path = tmp_path / "serve.yaml"
    path.write_text(
        "import_path: m:a\nruntime_env: {working_dir: code, pip: needs.txt, py_modules: [code/package, code]}\n"
    )
    (app,) = yaml.safe_load(ray_document(read(str(path)), ExportWish(builds=False))[0])["applications"]
    code = f"local://{tmp_path}/code"
    assert app["runtime_env"] == {"working_dir": code, "pip": ["one==1", "two"], "py_modules": [code, code]}
    path.write_text("import_path: m:a\nruntime_env: {working_dir: code, pip: missing.txt}\n")
    with pytest.raises(ConfigError, match=r"missing\.txt"):
        ray_document(read(str(path)), ExportWish(builds=False))


def test_what_imports_servd_is_built_by_servds_package(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import servd\n")
    path = tmp_path / "serve.yaml"
    path.write_text(
        "import_path: m:build\nargs: {a: 1}\nruntime_env: {working_dir: .}\n"
        "deployments: [{name: D, max_sync_threads: 2, num_replicas: 3}]\n"
    )
    text, found = ray_document(read(str(path)), ExportWish(builds=False))
    (app,) = yaml.safe_load(text)["applications"]
    assert app["import_path"] == ENTRY
    assert app["args"] == {
        "name": "default", "import_path": "m:build", "args": {"a": 1}, "options": {"D": {"max_sync_threads": 2}},
    }  # fmt: skip
    assert app["deployments"][0]["num_replicas"] == 3
    assert any("imports servd" in one.what for one in found)
    assert through_entry(app, {}, "gcs://p.zip")["runtime_env"]["py_modules"] == ["gcs://p.zip"]
