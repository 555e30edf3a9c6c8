"""`servd validate --engine ray`: what a scan of code and document finds, without importing either."""

import importlib
import io
import json
import os
import textwrap
import zipfile
from pathlib import Path

import pytest

import servd
from servd.engines.ray import packing, removed
from servd.engines.ray.check import check_code, check_document, read
from servd.engines.ray.findings import Finding, Severity, exit_code, in_order
from servd.exceptions import ConfigError

ROOT = Path(__file__).parents[2]
APPS, EXAMPLES, CONFIGS = ROOT / "tests" / "apps", ROOT / "examples", ROOT / "configs"
FAILS, DROPPED, DIFFERS, TRANSLATED = Severity.FAILS, Severity.DROPPED, Severity.DIFFERS, Severity.TRANSLATED
# every application of the repository -> whether something of it fails on Ray 2.60, as it was found by running it there
OUTCOMES = {
    "ray_style/app_in_init.py": True,  # the route that is added after the class: 404
    "ray_style/autoscaled.py": True,  # DEPLOY_FAILED: max_concurrent_queries
    "ray_style/batching.py": True,  # DEPLOY_FAILED: max_concurrent_queries
    "ray_style/conditional.py": True,  # DEPLOY_FAILED: drivers
    "ray_style/fruit_graph.py": True,  # DEPLOY_FAILED: drivers
    "ray_style/front_page.py": False,
    "ray_style/multiplexed.py": False,
    "ray_style/old_handles.py": True,  # RUNNING, 500: two steps
    "ray_style/package_app/text.py": False,
    "ray_style/script_legacy.py": True,  # ImportError
    "ray_style/script_today.py": False,
    "ray_style/shop/main.py": False,
    "ray_style/streaming.py": True,  # Ticker, and ?generator: 500
}


def scan(folder: Path, code: str) -> list[Finding]:
    path = folder / "m.py"
    path.write_text(textwrap.dedent(code))
    return check_code(str(path))


def of(found: list[Finding], severity: Severity) -> list[tuple[int, str]]:
    return [(one.line, one.what) for one in found if one.severity == severity]


def document(folder: Path, text: str) -> list[Finding]:
    (folder / "m.py").write_text("from ray import serve\n")
    path = folder / "doc.yaml"
    path.write_text(textwrap.dedent(text))
    return check_document(read(str(path)))


@pytest.mark.parametrize("name", OUTCOMES)
def test_exactly_those_applications_are_flagged_that_fail_there(name: str) -> None:
    found = check_code(str(APPS / name))
    assert (exit_code(found) == 1) is OUTCOMES[name], "\n".join(map(str, found))


@pytest.mark.parametrize(
    "path", [APPS / "driver_graphs.py", *sorted(EXAMPLES.glob("*/*.py"))], ids=lambda path: path.name
)
def test_code_of_servds_own_works_there(path: Path) -> None:
    assert exit_code(check_code(str(path))) != 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configs_are_checked_with_their_code(path: Path) -> None:
    found = check_document(read(str(path)))
    # methods of gRPC are found in applications with Ray's own API alone
    assert exit_code(found) == (1 if path.name == "grpc.yaml" else 3)
    assert {one.path.rpartition(".")[2] for one in found} == {"py", "yaml"}


@pytest.mark.parametrize(
    ("code", "line", "severity", "word"),
    [
        ("import servd\n@servd.deployment\nclass D: ...", 3, DIFFERS, "1 CPU"),
        ("from servd import deployment\n@deployment(preload=True)\nclass D: ...", 2, DIFFERS, "preload"),
        ("import servd\n@servd.multiplexed\nasync def f(x): ...", 2, DIFFERS, "one model"),
        ("from servd import metrics\nmetrics.Counter('a')", 2, DIFFERS, "`ray_...`"),
        ("import servd\nservd.run(app)", 2, DIFFERS, "refused"),
        (
            "import servd\n@servd.deployment(\n  request_router_config={'request_router_class': 'prefix'})\nclass D: ...",
            3, DIFFERS, "servd's pickle",
        ),
        (
            "from servd import deployment\nfrom servd.config import AutoscalingConfig\n"
            "@deployment(\n  autoscaling_config=AutoscalingConfig(policy={'policy_function': 'm:f'}))\nclass D: ...",
            4, DIFFERS, "Ray's controller",
        ),
    ],
)  # fmt: skip
def test_what_servds_package_cannot_make_the_same(
    tmp_path: Path, code: str, line: int, severity: Severity, word: str
) -> None:
    found = of(scan(tmp_path, code), severity)
    assert [at for at, what in found if word in what] == [line], found


@pytest.mark.parametrize(
    ("code", "line", "severity", "word"),
    [
        ("from ray.serve.drivers import DAGDriver", 1, FAILS, "ray.serve.drivers"),
        ("from ray.serve import drivers", 1, FAILS, "ray.serve.drivers"),
        ("import ray.serve.http_adapters", 1, FAILS, "http_adapters"),
        ("from ray.serve.dag import InputNode", 1, FAILS, "InputNode"),
        ("from ray.serve.handle import RayServeHandle", 1, FAILS, "RayServeHandle"),
        ("from ray import serve\nserve.get_deployment('D')", 2, FAILS, "get_deployment"),
        ("import ray\nray.serve.list_deployments()", 2, FAILS, "list_deployments"),
        ("from ray.serve.context import get_global_client", 1, FAILS, "get_global_client"),
        ("from ray import serve\n@serve.deployment(max_concurrent_queries=3)\nclass D: ...", 2, FAILS, "max_concurrent"),
        ("from ray import serve\n@serve.deployment(version='1')\nclass D: ...", 2, FAILS, "version"),
        ("from ray import serve\nx.options(route_prefix='/x')\n", 2, FAILS, "route_prefix"),
        ("from ray import serve\n@serve.deployment(max_sync_threads=3)\nclass D: ...", 2, FAILS, "max_sync_threads"),
        ("from ray import serve\n@serve.deployment\nclass D: ...\nD.deploy()", 4, FAILS, "deploy"),
        ("from ray import serve\n@serve.deployment\nclass D: ...\nd = D.bind()\nd.go.bind(1)", 5, FAILS, "`.go`"),
        ("from ray import serve\n@serve.deployment\nclass D: ...\nD.bind().go.bind(1)", 4, FAILS, "`.go`"),
        (
            "from ray import serve\n@serve.ingress(app)\nclass D: ...\n@app.get('/')\ndef f(): ...", 4, FAILS, "`app.get`",
        ),
        ("from ray import serve\n@serve.ingress(app)\nclass D: ...\napp.mount('/', x)", 4, FAILS, "`app.mount`"),
        ("import ray\nray.get(handle.remote(1))", 2, FAILS, "ray.get"),
        ("from ray import serve\n@serve.batch(on_error='split')\nasync def f(x): ...", 2, FAILS, "on_error"),
        ("from ray import serve\n@serve.batch\nasync def f(x): ...", 2, DIFFERS, "0.01 s"),
        ("from ray import serve\n@serve.batch(max_batch_size=3)\nasync def f(x): ...", 2, DIFFERS, "0.01 s"),
        ("from ray import serve\n@serve.multiplexed\nasync def f(x): ...", 2, DIFFERS, "one model"),
        ("from ray import serve\nserve.run(app)", 2, DIFFERS, "own folder"),
        ("from ray.util import metrics\nmetrics.Counter('a')", 2, DIFFERS, "`ray_...`"),
        (
            "from ray import serve\n@serve.deployment(autoscaling_config={'target_num_ongoing_requests_per_replica': 2})"
            "\nclass D: ...",
            2, DROPPED, "ignored",
        ),
        (
            "from ray.serve.config import AutoscalingConfig\nAutoscalingConfig(target_num_ongoing_requests_per_replica=2)",
            2, DROPPED, "ignored",
        ),
        ("from ray import serve\n@serve.deployment(autoscaling_config={})\nclass D: ...", 2, TRANSLATED, "2 there"),
        (
            "from ray import serve\n@serve.deployment(ray_actor_options={'runtime_env': {'env_vars': {'A': 1}}})\nclass D: ...",
            2, FAILS, "A is no string",
        ),
        (
            "from ray import serve\n@serve.deployment(ray_actor_options={'runtime_env': {}})\nclass D: ...",
            2, TRANSLATED, "drops env_vars",
        ),
        ("from ray import serve\n@serve.deployment(ray_actor_options={'env_vars': {}})\nclass D: ...", 2, FAILS, "env_vars"),
        ("from ray import serve\n@serve.deployment\nclass D: ...", 3, DIFFERS, "1 CPU"),
        ("from ray import serve\n@serve.deployment\nclass D:\n    def f(self): ...", 4, DIFFERS, "threads"),
        ("from ray import serve\n@serve.deployment\ndef f(request): ...", 3, DIFFERS, "threads"),
        ("from ray import serve\n@serve.deployment\nclass D:\n    def on_replica_start(self): ...", 4, DROPPED, "never called"),
        ("from ray import serve\n@serve.deployment\nclass D:\n    def __call__(self): yield 1", 4, FAILS, "generator"),
        (
            "from ray import serve\n@serve.deployment\nclass D:\n    def __call__(self, request):\n        return self.g()\n"
            "    def g(self): yield 1",
            5, FAILS, "generator",
        ),
        ("async def f(h):\n    ref = await h.remote(1)\n    return await ref", 3, FAILS, "`await`"),
        ("async def f(h):\n    return await (await h.remote(1))", 2, FAILS, "`await`"),
        (
            "async def f(h):\n    refs = [await h.remote(i) for i in x]\n    return [await one for one in refs]",
            3, FAILS, "`await`",
        ),
        ("async def f(self, request):\n    await self.h.remote(request)", 2, FAILS, "request"),
        ("async def f(self, r: 'starlette.requests.Request'):\n    await self.h.go.remote(x=r)", 2, FAILS, "request"),
        (
            "from ray import serve\n@serve.deployment\nclass D: ...\nserve.run(D.bind(), name='a')\nx == 'a_D'",
            5, FAILS, "'a_D'",
        ),
    ],
)  # fmt: skip
def test_each_place_is_named_with_its_severity(
    tmp_path: Path, code: str, line: int, severity: Severity, word: str
) -> None:
    found = of(scan(tmp_path, code), severity)
    assert [at for at, what in found if word in what] == [line], found


@pytest.mark.parametrize(
    "code",
    [
        # today's form of all that
        """
        from ray import serve
        from ray.serve.config import AutoscalingConfig
        from ray.serve.handle import DeploymentHandle
        from starlette.requests import Request
        from starlette.responses import StreamingResponse

        @serve.deployment(
            name="Two", max_ongoing_requests=3, ray_actor_options={"num_cpus": 0.5},
            autoscaling_config=AutoscalingConfig(min_replicas=1, target_ongoing_requests=2),
        )
        class D:
            def __init__(self, other: DeploymentHandle):
                self.other = other.options(method_name="go", stream=True)

            @serve.batch(batch_wait_timeout_s=0.0)
            async def many(self, items): return items

            async def __call__(self, request: Request):
                first = self.other.remote(request.url.path)
                found = [self.other.remote(i) for i in range(3)]
                await first
                return StreamingResponse(self.stream(), [await one for one in found])

            async def stream(self):
                yield 1

            def reconfigure(self, config): ...

        app = D.options(ray_actor_options={"num_cpus": 1}).bind(D.bind())
        """,
        # a generator that is called through a handle
        """
        from ray import serve

        @serve.deployment(ray_actor_options={"num_cpus": 1})
        class D:
            async def __call__(self, limit): yield limit
        """,
        # names that only look so
        """
        import metrics, ray_serve
        from other import get_deployment, serve
        serve.get_deployment("x")
        ray_serve.build()
        module.Thing.bind(1)
        metrics.Counter("x")
        """,
    ],
)
def test_what_works_the_same_is_not_mentioned(tmp_path: Path, code: str) -> None:
    assert scan(tmp_path, code) == []


def test_imports_are_followed_within_the_code_alone(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text("import os, requests\nfrom .deep import one\nfrom shop import two\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "one.py").write_text("from ..three import x\n")
    (package / "two.py").write_text("import ray.serve.drivers\n")
    (package / "three.py").write_text("\nimport ray.serve.drivers\n")
    (package / "unused.py").write_text("import ray.serve.drivers\n")
    found = check_code(str(package / "main.py"))
    assert [(Path(one.path).name, one.line) for one in found] == [("three.py", 2), ("two.py", 1)]


@pytest.mark.parametrize(
    ("text", "severity", "line", "word"),
    [
        ("import_path: m:a\nruntime_env: {working_dir: .}\n", TRANSLATED, 1, "`applications`"),
        ("import_path: m:a\nruntime_env: {working_dir: .}\nhost: 127.0.0.1\n", DIFFERS, 3, "host 127.0.0.1"),
        ("import_path: m:a\n", DIFFERS, 1, "working_dir"),
        ("import_path: other:a\nruntime_env: {working_dir: .}\n", DIFFERS, 1, "nobody has looked"),
        ("proxy_location: NoServer\napplications: []\n", TRANSLATED, 1, "Disabled"),
        ("applications:\n- import_path: m:a\n  runtime_env: {working_dir: nowhere}\n", FAILS, 3, "no directory"),
        ("applications:\n- {import_path: m:a, runtime_env: {working_dir: .}}\n", TRANSLATED, 2, "route_prefix"),
        ("import_path: m:a\nlogging_config: {log_level: debug}\n", TRANSLATED, 2, "upper case"),
        (
            f"import_path: m:a\nruntime_env:\n  working_dir: https://h/a.zip#sha256={'0' * 64}\n",
            DIFFERS, 3, "pin",
        ),
        (f"import_path: m:a\nruntime_env:\n  working_dir: file:///a.zip#sha256={'0' * 64}\n", FAILS, 3, "pin"),
        ("import_path: m:a\nruntime_env: {working_dir: 'https://h/a.zip', excludes: [x]}\n", DROPPED, 2, "excludes"),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n  max_sync_threads: 2\n",
            DROPPED, 5, "max_sync_threads",
        ),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n  max_constructor_retry_count: 2\n",
            DROPPED, 5, "max_constructor_retry_count",
        ),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n  max_concurrent_queries: 2\n",
            TRANSLATED, 5, "5 applies",
        ),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n"
            "  autoscaling_config: {min_replicas: 0, max_replicas: 2}\n",
            FAILS, 5, "min_replicas: 0",
        ),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n"
            "  autoscaling_config:\n    max_replicas: 2\n    policy: {policy_function: 'm:p'}\n",
            DIFFERS, 7, "Ray's controller",
        ),
        (
            "applications:\n- import_path: m:a\n  runtime_env: {working_dir: .}\n"
            "  autoscaling_policy: {policy_function: 'm:p'}\n",
            DIFFERS, 4, "Ray's controller",
        ),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n"
            "  ray_actor_options: {env_vars: {A: b}}\n",
            TRANSLATED, 5, "env_vars",
        ),
        (
            "import_path: m:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n"
            "  ray_actor_options: {object_store_memory: 1}\n",
            DROPPED, 5, "object_store_memory",
        ),
    ],
)  # fmt: skip
def test_documents(tmp_path: Path, text: str, severity: Severity, line: int, word: str) -> None:
    found = of(document(tmp_path, text), severity)
    assert [at for at, what in found if word in what] == [line], found


def test_texts_of_handle_calls_are_seen_with_rays_own_handles_alone(tmp_path: Path) -> None:
    text = "import_path: %s:a\nruntime_env: {working_dir: .}\ndeployments:\n- name: D\n"
    text += "  request_router_config: {request_router_class: prefix}\n"
    (tmp_path / "n.py").write_text("import servd\n")
    assert [line for line, what in of(document(tmp_path, text % "n"), DIFFERS) if "servd's pickle" in what] == [5]
    assert [line for line, what in of(document(tmp_path, text % "m"), DIFFERS) if "servd's pickle" in what] == []


def test_a_document_says_what_the_code_leaves_open(tmp_path: Path) -> None:
    (tmp_path / "n.py").write_text("from ray import serve\n@serve.deployment\nclass D: ...\n")
    text = "applications:\n- {name: a, route_prefix: /, import_path: n:a, runtime_env: {working_dir: .}, deployments: %s}\n"
    rest = "http_options: {host: 0.0.0.0}\n"
    assert exit_code(document(tmp_path, text % "[]" + rest)) == 3
    assert exit_code(document(tmp_path, text % "[{name: D, ray_actor_options: {num_cpus: 1}}]" + rest)) == 0


def test_code_that_is_uploaded_must_not_scale_to_zero(tmp_path: Path) -> None:
    code = "from ray import serve\n@serve.deployment(autoscaling_config={'min_replicas': 0})\nclass D: ...\n"
    (tmp_path / "n.py").write_text(code)
    uploaded = document(tmp_path, "import_path: n:a\nruntime_env: {working_dir: .}\n")
    assert [line for line, what in of(uploaded, FAILS) if "min_replicas: 0" in what] == [2]
    in_image = document(tmp_path, f"import_path: n:a\nruntime_env: {{working_dir: 'local://{tmp_path}'}}\n")
    assert of(in_image, FAILS) == []


def test_every_name_that_ray_has_no_more_is_known() -> None:
    todays = json.loads((ROOT / "tests" / "core" / "names_of_today.json").read_text())
    gone = {
        f"ray.serve{module}.{name}"
        for module in ("", *(f".{one}" for one in servd._MODULES))
        if f"ray.serve{module}" not in removed.MODULES
        for name in importlib.import_module(f"servd{module}").__all__
        if name not in todays.get(f"ray.serve{module}", ())
    }
    assert gone <= {*removed.NAMES}


def test_findings_are_in_order_and_each_is_told_once() -> None:
    worst, mild = Finding("a", 2, FAILS, "x"), Finding("a", 2, DIFFERS, "a", "write b")
    assert in_order([mild, worst, mild, Finding("a", 1, DROPPED, "y")]) == [Finding("a", 1, DROPPED, "y"), worst, mild]
    assert str(mild) == "a:2: differs: a; write b"
    assert [exit_code(found) for found in ([], [mild], [mild, worst], [Finding("a", 1, TRANSLATED, "t")])] == [
        0,
        3,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("content", "excludes", "too_large"),
    [("x" * 100, (), False), ("large", (), True), ("large", ("big*",), False), ("zeros", (), False)],
)
def test_an_upload_has_at_most_100_mib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, excludes: tuple[str, ...], too_large: bool
) -> None:
    monkeypatch.setattr(packing, "MAX_UPLOAD_BYTES", 100_000)
    data = {"large": os.urandom(101_000), "zeros": bytes(1_000_000)}.get(content, content.encode())
    (tmp_path / "big.bin").write_bytes(data)
    assert packing.is_too_large(str(tmp_path), excludes) is too_large


def test_the_same_content_is_the_same_archive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "m.py").write_text("x")
        (tmp_path / name / "run").write_text("y")
        (tmp_path / name / "run").chmod(0o755)
        (tmp_path / name / "link").symlink_to("deep")
        (tmp_path / name / "__pycache__").mkdir()
    os.utime(tmp_path / "a" / "run", (1, 1))
    first, second = (packing.pack(str(tmp_path / name), ()) for name in ("a", "b"))
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first.data)) as archive:
        assert archive.namelist() == ["deep/m.py", "link/m.py", "run"]
        assert archive.getinfo("run").external_attr >> 16 & 0o111
    (tmp_path / "b" / "run").write_text("z")
    assert packing.pack(str(tmp_path / "b"), ()).digest != first.digest
    with pytest.raises(ConfigError, match="no directory"):
        packing.pack(str(tmp_path / "c"), ())


def test_options_of_servds_own_reach_servds_package(tmp_path: Path) -> None:
    text = "import_path: %s:a\nruntime_env: {working_dir: .}\ndeployments: [{name: D, max_sync_threads: 2, preload: true}]\n"
    (tmp_path / "own.py").write_text("import servd\n")
    assert [what for _, what in of(document(tmp_path, text % "own"), DROPPED)] == [
        "`preload` is ignored there without a word"
    ]
    assert len(of(document(tmp_path, text % "m"), DROPPED)) == 2
    in_image = document(tmp_path, f"import_path: own:a\nruntime_env: {{working_dir: 'local://{tmp_path}'}}\n")
    assert of(in_image, FAILS) == []


def test_methods_of_grpc(tmp_path: Path) -> None:
    text = """\
    grpc_options:
      grpc_servicer_functions: [m_pb2_grpc.add_MServicer_to_server]
    applications:
    - import_path: m:app
      runtime_env: {working_dir: .}
    """
    found = document(tmp_path, text)
    assert [line for line, what in of(found, FAILS) if "servicer functions" in what] == [2]
    found = document(tmp_path, text.replace("{working_dir: .}", "{}"))
    assert not [line for line, what in of(found, FAILS) if "servicer functions" in what]
    found = document(tmp_path, text.replace("[m_pb2_grpc.add_MServicer_to_server]", "[]"))
    assert of(found, FAILS) == []
    found = scan(
        tmp_path,
        """\
        from ray import serve
        from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream as Stream

        @serve.deployment
        class D:
            async def Ask(self, request, grpc_context: RayServegRPCContext):
                return grpc_context.time_remaining()

            def Many(self, requests: Stream):
                for request in requests:
                    yield request

            def List(self, requests: Stream):
                return len(list(requests))

            async def Good(self, requests: Stream, grpc_context):
                grpc_context.set_code(5)
                async for request in requests:
                    yield request
        """,
    )
    assert of(found, FAILS) == [
        (7, "`grpc_context` has no `time_remaining` there"),
        (10, "the requests of a client come to asynchronous methods only there"),
        (14, "the requests of a client come to asynchronous methods only there"),
    ]
