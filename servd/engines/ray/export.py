"""What `servd export` prints: today's Ray document, or resources of Kubernetes that hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servd.documents import runtime_env
from servd.documents.files import dump_yaml
from servd.engines.ray import manifests
from servd.engines.ray.check import ReadFile, are_servds, check_document, code_of
from servd.engines.ray.described import DescribedApplication, describe
from servd.engines.ray.document_rules import Way, applications, environments, local_directories, with_environments
from servd.engines.ray.findings import Finding, Severity, in_order
from servd.engines.ray.prepared import prepared
from servd.engines.ray.translated import Move, moved_to, through_entry, todays_document
from servd.exceptions import ConfigError
from servd.schema import parse_v1, parse_v2

_BETWEEN = "\n---\n"
_DRAIN_S = 20.0


@dataclass(frozen=True, slots=True)
class ExportWish:
    """What to print. code: what stands for local directories, `local:///DIR` or the URI of an archive; "" = their own paths.

    image: of the containers; "" = none. builds: whether deployments are listed that only the code knows.
    """

    code: str = ""
    image: str = ""
    builds: bool = True


def ray_document(document: ReadFile, wish: ExportWish) -> tuple[str, list[Finding]]:
    """The document for `PUT /api/serve/applications/` as YAML, and what to know of it.

    Raises:
        ConfigError: the code does not load here, or `code` cannot stand for all directories.
    """
    value = _todays(document, wish, _described(document, wish))
    return dump_yaml(value), check_document(document, Way(uploads=False, code=wish.code))


def kuberay(document: ReadFile, name: str, wish: ExportWish) -> tuple[str, list[Finding]]:
    """A RayService that runs the document, and what to know of it.

    Raises:
        ConfigError: see `ray_document`; or `name` is none.
    """
    described = _described(document, wish)
    value = _todays(document, wish, described, host=manifests.ANY_HOST)
    code = {(app, one): options for app, found in described.items() for one, options in found.deployments.items()}
    port = value["http_options"].get("port", manifests.DEFAULT_PORT)
    cpus = manifests.cpus_needed(value, code)
    service = manifests.ray_service(name, wish.image, dump_yaml(value) + "\n", port=port, cpus=cpus)
    way = Way(uploads=False, code=wish.code, host=manifests.ANY_HOST)
    return dump_yaml(service), check_document(document, way)


def kubernetes(document: ReadFile, name: str, wish: ExportWish) -> tuple[str, list[Finding]]:
    """ConfigMap, Deployment and Service that run servd, one a pod, and what to know of them.

    Raises:
        ConfigError: `name` is none, or `code` cannot stand for all directories.
    """
    value = _with_code(document, wish)
    http = value.get("http_options") or {} if "applications" in value else value
    goal = parse_v2(value) if document.checked.multi_app else parse_v1(value)
    drain = max(
        (entry.get("graceful_shutdown_timeout_s", _DRAIN_S) for app in goal.applications for entry in app.deployments),
        default=_DRAIN_S,
    )
    resources = manifests.plain_resources(
        name, wish.image, dump_yaml(value) + "\n", port=http.get("port") or manifests.DEFAULT_PORT, drain_s=drain
    )
    found = []
    for place, app in applications(document.checked.value) if not wish.code else ():
        for path in local_directories(app.get("runtime_env") or {}):
            line = int(document.file.place((*place, "runtime_env")).rsplit(":", 2)[1])
            what = f"the image must have the code in {path}"
            found.append(Finding(document.file.name, line, Severity.DIFFERS, what, "say where it is: `--code`"))
    return _BETWEEN.join(dump_yaml(one) for one in resources), in_order(found)


def _described(document: ReadFile, wish: ExportWish) -> dict[str, DescribedApplication]:
    if not wish.builds:
        return {}
    return {
        (app.get("name") or "default"): describe(app.get("name") or "default", app)
        for _, app in applications(document.checked.value)
    }


def _todays(
    document: ReadFile, wish: ExportWish, described: Mapping[str, DescribedApplication], host: str | None = None
) -> dict[str, Any]:
    value = prepared(document.checked.value)
    found = todays_document(value, described, move=_move(value, wish.code), host=host, working_dir=wish.code or None)
    written = [app for _, app in applications(value)]
    found["applications"] = [
        through_entry(app, its, "") if are_servds(code_of(its)) else app
        for app, its in zip(found["applications"], written, strict=True)
    ]
    return found


def _move(value: Mapping[str, Any], code: str) -> Move:
    directories = sorted(
        {path for _, app in applications(value) for env in environments(app) for path in local_directories(env)}
    )
    if not code:
        return lambda uri: f"local://{runtime_env.local_path(uri)}" if _is_here(uri, directories) else uri
    if len(directories) > 1 and not code.startswith("local:"):
        raise ConfigError(
            f"an archive stands for one directory, the file names {', '.join(directories)}: give --code local:///DIR for an "
            "image that has them, or name archives in the file"
        )
    return moved_to(code, directories)


def _is_here(uri: str, directories: list[str]) -> bool:
    return not runtime_env.is_remote(uri) and runtime_env.local_path(uri) in directories


def _with_code(document: ReadFile, wish: ExportWish) -> dict[str, Any]:
    """servd's own document with `code` in place of local directories."""
    value = document.checked.value
    move = _move(value, wish.code) if wish.code else lambda uri: uri

    def moved(env: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(env)
        if isinstance(found.get("working_dir"), str):
            found["working_dir"] = move(found["working_dir"])
        if found.get("py_modules"):
            found["py_modules"] = [move(uri) for uri in found["py_modules"] if uri is not None]
        return found

    def with_directory(app: Mapping[str, Any]) -> dict[str, Any]:
        env = app.get("runtime_env") or {}
        if not wish.code or env.get("working_dir"):
            return dict(app)
        return {**app, "runtime_env": {**env, "working_dir": wish.code}}

    found = with_environments(value, moved)
    if "applications" in found:
        return {**found, "applications": [with_directory(app) for app in found["applications"]]}
    return with_directory(found)
