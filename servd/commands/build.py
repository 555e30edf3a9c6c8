"""What `servd build` does: a config document from application code. Imports the code itself, asks no daemon."""

import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from servd.app.built import BuiltApplication, build_application
from servd.app.deployment import Application, Deployment
from servd.compat import ray_names
from servd.dag import HandleMaker
from servd.documents.files import dump_spaced_yaml, resolve_paths
from servd.exceptions import ConfigError
from servd.ground.package import VERSION
from servd.schema import DeploymentSchema, check_import_path, parse_v1, parse_v2

SINGLE_LEVELS, MULTI_LEVELS = 2, 4
KUBERNETES_HTTP = {"host": "127.0.0.1", "port": 8000}
_TEXTS = ("runtime_env", "resources")


def build(import_paths: Sequence[str], *, app_dir: str, folder: str, multi_app: bool, kubernetes: bool) -> str:
    """The text of the file, with one newline at its end.

    It says nothing of the data port: an instance that runs keeps its own.

    Args:
        app_dir: put first on the import path; the `working_dir` of the applications.
        folder: of the file, which its relative paths are meant from.
        multi_app: a multi-app config also of one application. Of several it is one anyway; without it, those that would all
            answer at "/" get a prefix of their names, as of today's Ray Serve.
        kubernetes: camelCase keys, open objects as JSON text.

    Raises:
        ConfigError: options that exclude each other, a malformed path, or two applications with one route prefix.
        TypeError: an import path names no Application.
        Exception: whatever the user's code raises.
    """
    may_name = not multi_app
    multi_app = multi_app or len(import_paths) > 1
    if multi_app and kubernetes:
        raise ConfigError("--kubernetes_format has no form for several applications: name one, without --multi-app")
    for path in import_paths:
        try:
            check_import_path(path)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    sys.path.insert(0, os.path.abspath(app_dir))
    ray_names.install()
    built = [build_application(_application(path), "", HandleMaker()) for path in import_paths]
    # there the code is in the image, and the port belongs to the cluster's own daemon
    env = {} if kubernetes else {"working_dir": os.path.relpath(app_dir, folder)}
    if multi_app:
        document = _multi(import_paths, built, env, may_name=may_name)
        parse_v2(resolve_paths(document, folder))
    else:
        document = _single(import_paths[0], built[0], env, KUBERNETES_HTTP if kubernetes else {})
        parse_v1(resolve_paths(document, folder))
    if kubernetes:
        document = _kubernetes(document)
    head = f"# This file was generated using the `servd build` command on servd v{VERSION}.\n\n"
    return head + dump_spaced_yaml(document, MULTI_LEVELS if multi_app else SINGLE_LEVELS) + "\n"


def _application(import_path: str) -> Application:
    module, _, attribute = import_path.rpartition(":" if ":" in import_path else ".")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, Application):
        return target
    hint = "; call its `.bind(...)`" if isinstance(target, Deployment) else ""
    raise TypeError(
        f"{import_path} is no Application, made by `.bind(...)`, but {type(target).__name__}{hint}; "
        "builder functions cannot be described without their arguments"
    )


def _single(import_path: str, built: BuiltApplication, env: dict[str, Any], http: dict[str, Any]) -> dict[str, Any]:
    deployments = [_entry(item, with_prefix=True) for item in built.deployments.values()]
    return {"import_path": import_path, "runtime_env": env, **http, "deployments": deployments}


def _multi(
    import_paths: Sequence[str], built: Sequence[BuiltApplication], env: dict[str, Any], *, may_name: bool
) -> dict[str, Any]:
    names = [f"app{number}" for number in range(1, len(built) + 1)]
    prefixes = [app.route_prefix for app in built]
    if may_name and prefixes.count("/") > 1:
        prefixes = [f"/{name}" if prefix == "/" else prefix for name, prefix in zip(names, prefixes, strict=True)]
    owners: dict[str, str] = {}
    for path, prefix in zip(import_paths, prefixes, strict=True):
        if prefix is not None and owners.setdefault(prefix, path) != path:
            hint = "set another in code, as with `.options(route_prefix=...)` on the ingress"
            raise ConfigError(f'{owners[prefix]} and {path} have the same route_prefix "{prefix}": {hint}')
    applications: list[dict[str, Any]] = [
        {
            "name": name,
            "route_prefix": prefix,
            "import_path": path,
            "runtime_env": dict(env),
            "deployments": [_entry(item, with_prefix=False) for item in app.deployments.values()],
        }
        for name, prefix, path, app in zip(names, prefixes, import_paths, built, strict=True)
    ]
    return {"applications": applications}


def _entry(deployment: Deployment, *, with_prefix: bool) -> dict[str, Any]:
    """Name and the options that were set in code, in the order of the schema."""
    given = deployment.config.given()
    if given.get("num_replicas", 1) is None:
        del given["num_replicas"]
    if with_prefix and not deployment.has_default_route_prefix:
        given["route_prefix"] = deployment.route_prefix
    if not isinstance(given.get("user_config"), dict):
        # documents take objects only; without the key the code's value holds
        given.pop("user_config", None)
    entry = {"name": deployment.name}
    order = [*DeploymentSchema.key_order, *given]
    return {**entry, **{key: given[key] for key in dict.fromkeys(order) if key in given}}


def _kubernetes(document: dict[str, Any]) -> dict[str, Any]:
    deployments = []
    for entry in document["deployments"]:
        found = dict(entry)
        if isinstance(found.get("user_config"), dict):
            found["user_config"] = json.dumps(found["user_config"])
        if isinstance(found.get("ray_actor_options"), dict):
            options = {key: json.dumps(v) if key in _TEXTS else v for key, v in found["ray_actor_options"].items()}
            found["ray_actor_options"] = _camel_keys(options)
        deployments.append(_camel_keys(found))
    whole = {**document, "runtime_env": json.dumps(document["runtime_env"]), "deployments": deployments}
    return _camel_keys(whole)


def _camel_keys(value: dict[str, Any]) -> dict[str, Any]:
    return {_camel(key): item for key, item in value.items()}


def _camel(key: str) -> str:
    return re.sub(r"_+(.)", lambda match: match[1].upper(), key.strip("_"))
