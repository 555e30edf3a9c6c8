"""From a servd document to the one that a cluster is sent, with its code as packages."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from servd.documents import runtime_env
from servd.engines.ray.check import ReadFile, are_servds, code_of
from servd.engines.ray.described import describe
from servd.engines.ray.document_rules import applications, local_directories, with_environments
from servd.engines.ray.packing import Package, pack
from servd.engines.ray.prepared import with_requirements
from servd.engines.ray.translated import through_entry, todays_document
from servd.ground.package import PACKAGE_DIR


@dataclass(frozen=True, slots=True)
class ClusterDocument:
    """value: for the PUT; its packages must be there first. packages: name -> archive. given_http: the file's options."""

    value: dict[str, Any]
    packages: Mapping[str, Package]
    given_http: Mapping[str, Any] = field(default_factory=dict)


def cluster_document(document: ReadFile, *, builds: bool) -> ClusterDocument:
    """Translates, and packs every directory that the file names.

    Args:
        builds: whether deployments are listed that only the code knows.

    Raises:
        ConfigError: a directory is missing or too large as an archive, or the code does not load here.
    """
    packages: dict[str, Package] = {}

    def uploaded(uri: str, env: Mapping[str, Any], *, is_module: bool) -> str:
        if not local_directories({"working_dir": uri}):
            return uri
        path = runtime_env.local_path(uri)
        is_module = is_module and os.path.exists(os.path.join(path, "__init__.py"))
        prefix = os.path.basename(path) if is_module else ""
        package = pack(path, env.get("excludes") or (), prefix=prefix, left_out=document.checked.path)
        packages[_name_of(package)] = package
        return f"gcs://{_name_of(package)}"

    def environment(env: Mapping[str, Any]) -> dict[str, Any]:
        found = with_requirements(env)
        if isinstance(found.get("working_dir"), str):
            found["working_dir"] = uploaded(found["working_dir"], env, is_module=False)
        if found.get("py_modules"):
            modules = [uri for uri in found["py_modules"] if uri is not None]
            found["py_modules"] = [uploaded(uri, env, is_module=True) for uri in modules]
        return found

    value = document.checked.value
    described = {}
    for _, app in applications(value) if builds else ():
        name = app.get("name") or "default"
        described[name] = describe(name, app)
    given = dict(value.get("http_options") or {}) if "applications" in value else value
    http = {key: given[key] for key in ("host", "port", "root_path", "request_timeout_s") if key in given}
    found = todays_document(with_environments(value, environment), described)
    own = [are_servds(code_of(app)) for _, app in applications(value)]
    if any(own):
        package = pack(PACKAGE_DIR, (), prefix="servd")
        packages[_name_of(package)] = package
        written = [app for _, app in applications(value)]
        found["applications"] = [
            through_entry(app, its, f"gcs://{_name_of(package)}") if is_own else app
            for app, its, is_own in zip(found["applications"], written, own, strict=True)
        ]
    return ClusterDocument(found, packages, http)


def _name_of(package: Package) -> str:
    return f"servd-{package.digest}.zip"


def differing_http(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> list[str]:
    """Options of the data port that a document gives and the cluster has otherwise, each as "option: there -> in the file"."""
    return [
        f"{key}: {running[key]!r} -> {value!r}"
        for key, value in wanted.items()
        if key in running and running[key] != value
    ]
