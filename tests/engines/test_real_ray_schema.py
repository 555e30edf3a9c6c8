"""What is exported against the models of a real Ray 2.60, which drop what they do not know without a word."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from servd.engines.ray.check import read
from servd.engines.ray.export import ExportWish, kuberay, ray_document

ROOT = Path(__file__).parents[2]
RAY = os.environ.get("SERVD_TEST_RAY", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not RAY, reason="SERVD_TEST_RAY names no environment with ray[serve]"),
]
KEPT = """
import json, sys
from ray.serve.schema import ServeDeploySchema
documents = json.load(sys.stdin)
print(json.dumps([ServeDeploySchema.model_validate(one).model_dump(mode="json", exclude_unset=True) for one in documents]))
"""
EVERYTHING = """\
proxy_location: NoServer
http_options: {host: 0.0.0.0, port: 9000, root_path: /x, request_timeout_s: 5}
logging_config: {log_level: info, encoding: JSON, enable_access_log: false}
applications:
- name: one
  route_prefix: /one
  import_path: m:a
  args: {a: 1}
  logging_config: {log_level: debug}
  runtime_env: {working_dir: ., py_modules: [other], pip: [x], env_vars: {A: b}, config: {setup_timeout_seconds: 5}}
  deployments:
  - name: D
    num_replicas: 2
    max_concurrent_queries: 7
    max_queued_requests: 8
    max_surge_percent: 50
    user_config: {a: 1}
    graceful_shutdown_wait_loop_s: 1
    graceful_shutdown_timeout_s: 2
    health_check_period_s: 3
    health_check_timeout_s: 4
    logging_config: {log_level: debug}
    max_sync_threads: 2
    ray_actor_options: {num_cpus: 0.5, num_gpus: 0, memory: 1000000, resources: {r: 1}, env_vars: {A: c}}
  - name: E
    autoscaling_config: {min_replicas: 1, max_replicas: 3, target_num_ongoing_requests_per_replica: 2, upscale_delay_s: 1}
"""


def lost(sent: Any, kept: Any, place: str = "") -> Iterator[str]:
    """Keys that were sent and are not there, or otherwise."""
    if isinstance(sent, Mapping):
        for key, item in sent.items():
            if isinstance(kept, Mapping) and key in kept:
                yield from lost(item, kept[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(sent, list):
        for index, item in enumerate(sent):
            yield from lost(item, kept[index], f"{place}[{index}]")
    elif sent != kept:
        yield f"{place}: {sent!r} -> {kept!r}"


def test_no_key_is_lost(tmp_path: Path) -> None:
    everything = tmp_path / "everything.yaml"
    everything.write_text(EVERYTHING)
    wish = ExportWish("local:///srv/app", "registry/app:1", builds=False)
    sent = []
    for path in [*sorted((ROOT / "configs").glob("*.yaml")), everything]:
        sent.append(yaml.safe_load(ray_document(read(str(path)), wish)[0]))
        service = yaml.safe_load(kuberay(read(str(path)), "fruit", wish)[0])
        sent.append(yaml.safe_load(service["spec"]["serveConfigV2"]))
    broken = {**sent[0], "colour": 1}
    done = subprocess.run(
        [f"{RAY}/python", "-c", KEPT], input=json.dumps([*sent, broken]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *kept, broken_kept = json.loads(done.stdout)
    assert [list(lost(one, there)) for one, there in zip(sent, kept, strict=True)] == [[]] * len(sent)
    assert list(lost(broken, broken_kept)) == [".colour"]
