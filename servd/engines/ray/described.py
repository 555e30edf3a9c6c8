"""What an application's code says of its deployments: found by building it in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servd.documents import runtime_env
from servd.engines.ray.document_rules import local_directories
from servd.exceptions import ConfigError


@dataclass(frozen=True, slots=True)
class DescribedApplication:
    """route_prefix: of the ingress. deployments: bare name -> options that the code gives, by their 2.5 names."""

    route_prefix: str | None
    deployments: Mapping[str, Mapping[str, Any]]


def describe(name: str, app: Mapping[str, Any]) -> DescribedApplication:
    """Import and flatten an application of a valid document, in its directories and with its variables.

    Args:
        name: what error texts call it.

    Raises:
        ConfigError: the code is not on this machine, or does not load here.
    """
    env = app.get("runtime_env") or {}
    here = local_directories(env)
    if any(runtime_env.is_remote(uri) for uri in _uris(env)):
        raise ConfigError(
            f"application {name!r}: its code is an archive elsewhere, so its deployments cannot be listed; "
            "name all of them in the file and give --no-build"
        )
    variables = {**os.environ, **(env.get("env_vars") or {}), "PYTHONDONTWRITEBYTECODE": "1"}
    places = [*_on_the_path(env), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(places)
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "described.json")
        order = [app["import_path"], json.dumps(app.get("args") or {}), target]
        done = subprocess.run(
            [sys.executable, "-m", "servd.engines.ray.describing", *order],
            cwd=here[0] if env.get("working_dir") and here else None,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode or not os.path.exists(target):
            raise ConfigError(
                f"application {name!r}: {app['import_path']} does not load on this machine; where it loads only on the "
                f"cluster, name all of its deployments in the file and give --no-build\n{done.stderr.strip()}"
            )
        with open(target, encoding="utf-8") as file:
            found = json.load(file)
    return DescribedApplication(found["route_prefix"], found["deployments"])


def _uris(env: Mapping[str, Any]) -> list[str]:
    return [uri for uri in (env.get("working_dir"), *(env.get("py_modules") or ())) if isinstance(uri, str)]


def _on_the_path(env: Mapping[str, Any]) -> list[str]:
    found = []
    for uri in _uris({**env, "py_modules": [*(env.get("py_modules") or ())]}):
        path = runtime_env.local_path("file:" + uri.removeprefix("local:") if uri.startswith("local:") else uri)
        is_module = uri != env.get("working_dir") and os.path.exists(os.path.join(path, "__init__.py"))
        found.append(os.path.dirname(path) if is_module else path)
    # the working directory leads
    return found
