"""What of a document would fail, be dropped or behave differently on a Ray cluster."""

import os
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from servd.documents import runtime_env
from servd.documents.files import DocumentFile
from servd.engines.ray import removed
from servd.engines.ray.code_rules import SCALED_TO_ZERO, SCALED_TO_ZERO_INSTEAD
from servd.engines.ray.findings import Finding, Severity
from servd.engines.ray.grpc_rules import servicers_of

_FAILS, _DROPPED, _DIFFERS, _TRANSLATED = Severity.FAILS, Severity.DROPPED, Severity.DIFFERS, Severity.TRANSLATED
IGNORED_WITHOUT_A_WORD = "is ignored there without a word"
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_ERA_KEYS = {
    "max_concurrent_queries": "max_ongoing_requests",
    "target_num_ongoing_requests_per_replica": "target_ongoing_requests",
}
_OWN_KEYS = {**removed.OWN_OPTIONS, **removed.CODE_OPTIONS, "is_driver_deployment": "leave it out"}

Place = tuple[str | int, ...]
Findings = Iterator[Finding]


@dataclass(frozen=True, slots=True)
class Way:
    """How code and document get there.

    uploads: whether local directories are sent. code: what is written in place of those that are not; "" = their own path on
    each node. host: what is written in place of the document's; "" = nothing.
    """

    uploads: bool = True
    code: str = ""
    host: str = ""


UPLOADED = Way()


class DocumentRules:
    """Finds what it finds in one document.

    Args:
        file: as written, valid for servd. value: the same with absolute paths. too_large: local directories that
        have more than an upload may have, after `excludes`. servds: applications that are written with `import servd`.
    """

    def __init__(
        self, file: DocumentFile, value: Mapping[str, Any], too_large: Set[str], way: Way, servds: Set[str]
    ) -> None:
        self._file, self._value, self._too_large, self._way, self._servds = file, value, too_large, way, servds

    def findings(self) -> Findings:
        """Everything that the document alone shows."""
        yield from self._top()
        for place, app in applications(self._value):
            yield from self._application(place, app)

    def _at(self, place: Place, severity: Severity, what: str, instead: str = "") -> Finding:
        line = int(self._file.place(place).rsplit(":", 2)[1])
        return Finding(self._file.name, line, severity, what, instead)

    def _top(self) -> Findings:
        value = self._value
        if "applications" not in value:
            yield self._at((), _TRANSLATED, "Ray takes documents with a list `applications` only")
            yield from self._host((), value)
        if value.get("proxy_location") == "NoServer":
            yield self._at(("proxy_location",), _TRANSLATED, "`NoServer` is `Disabled` there")
        yield from self._log_level((), value)
        if "applications" in value:
            yield from self._host(("http_options",), value.get("http_options") or {})
        yield from self._servicers(value)

    def _servicers(self, value: Mapping[str, Any]) -> Findings:
        if servicers_of(value) and self._way.uploads and any(is_uploaded(env) for env in _all_environments(value)):
            what = (
                "the proxies of each node import the servicer functions themselves, and have none of what is uploaded"
            )
            instead = "install the generated modules into the image"
            yield self._at(("grpc_options", "grpc_servicer_functions"), _FAILS, what, instead)

    def _host(self, place: Place, options: Mapping[str, Any]) -> Findings:
        if self._way.host:
            return
        if "host" not in options:
            yield self._at(place, _TRANSLATED, "without `host` the port is open to the network there, on every node")
        elif options["host"] in _LOOPBACK_HOSTS:
            what = f"with host {options['host']} each node of the cluster answers itself only"
            yield self._at((*place, "host"), _DIFFERS, what, "write 0.0.0.0 where others may ask it")

    def _log_level(self, place: Place, value: Mapping[str, Any]) -> Findings:
        level = (value.get("logging_config") or {}).get("log_level")
        if isinstance(level, str) and level != level.upper():
            yield self._at((*place, "logging_config", "log_level"), _TRANSLATED, "log levels are upper case there")

    def _application(self, place: Place, app: Mapping[str, Any]) -> Findings:
        if place and "route_prefix" not in app:
            yield self._at(place, _TRANSLATED, "without `route_prefix` it is `/` there, whatever the code says")
        if place:
            yield from self._log_level(place, app)
        env = app.get("runtime_env") or {}
        yield from self._environment((*place, "runtime_env"), env)
        if not env.get("working_dir") and not self._way.code:
            what = "without `working_dir` the nodes look for the code in what their image has installed"
            yield self._at((*place, "import_path"), _DIFFERS, what, "name its directory or archive")
        is_servds = (app.get("name") or "default") in self._servds
        if is_servds and not self._way.uploads:
            what = "the application imports servd"
            yield self._at((*place, "import_path"), _DIFFERS, what, "install servd into the image, beside `ray[serve]`")
        if is_servds and servicers_of(self._value):
            what = "methods of gRPC are not found in an application that imports servd"
            yield self._at((*place, "import_path"), _FAILS, what, "write it with `from ray import serve`")
        if app.get("autoscaling_policy"):
            yield self._at((*place, "autoscaling_policy"), _DIFFERS, removed.POLICY, removed.POLICY_INSTEAD)
        for index, entry in enumerate(app.get("deployments") or ()):
            uploaded = self._way.uploads and is_uploaded(env)
            yield from self._deployment((*place, "deployments", index), entry, uploaded, is_servds)

    def _environment(self, place: Place, env: Mapping[str, Any]) -> Findings:
        modules = [((*place, "py_modules", n), uri) for n, uri in enumerate(env.get("py_modules") or ())]
        for at, uri in [((*place, "working_dir"), env.get("working_dir")), *modules]:
            if isinstance(uri, str):
                yield from self._uri(at, uri)
        if env.get("excludes") and not is_uploaded(env):
            what = f"`excludes` {IGNORED_WITHOUT_A_WORD} where no directory is uploaded"
            yield self._at((*place, "excludes"), _DROPPED, what, "leave the files out of the archive")
        if isinstance(env.get("pip"), str):
            yield self._at((*place, "pip"), _TRANSLATED, "a requirements file is looked for on the head node there")

    def _uri(self, place: Place, uri: str) -> Findings:
        if runtime_env.pin_of(uri):
            if runtime_env.is_remote(uri):
                yield self._at(place, _DIFFERS, "nobody checks the pin there", "let the URL change with the content")
            else:
                what = "the pin is taken for a part of the name there"
                yield self._at(place, _FAILS, what, "leave `#sha256=...` out")
        if runtime_env.is_remote(uri) or uri.startswith("local:"):
            return
        path = runtime_env.local_path(uri)
        if not runtime_env.is_local_directory(uri):
            what = f"{path} is looked for on each node"
            yield self._at(place, _FAILS, what, "unpack it and name the folder, or put it at an https: URI")
            return
        if not self._way.uploads:
            if not self._way.code:
                yield self._at(place, _DIFFERS, f"{path} must be on every node", "say where it is: `--code`")
            return
        if not os.path.isdir(path):
            yield self._at(place, _FAILS, f"there is no directory {path}")
        if path in self._too_large:
            what = f"{path} is more than 100 MiB as an archive, which is all that the cluster takes"
            yield self._at(place, _FAILS, what, "leave data out with `excludes`, or use an archive or the image")

    def _deployment(self, place: Place, entry: Mapping[str, Any], uploaded: bool, is_servds: bool) -> Findings:
        for key in entry:
            if key in _OWN_KEYS and not (is_servds and key in removed.PASSED_ON):
                what = f"`{key}` {IGNORED_WITHOUT_A_WORD}"
                yield self._at((*place, key), _DROPPED, what, _OWN_KEYS[key])
        if entry.get("route_prefix") is not None:
            what = "a `route_prefix` belongs to the application there"
            yield self._at((*place, "route_prefix"), _TRANSLATED, what)
        if "max_concurrent_queries" in entry:
            yield self._era_key(place, "max_concurrent_queries", 5)
        scaling = entry.get("autoscaling_config") or {}
        if "target_num_ongoing_requests_per_replica" in scaling:
            yield self._era_key((*place, "autoscaling_config"), "target_num_ongoing_requests_per_replica", 2)
        if scaling.get("min_replicas") == 0 and uploaded:
            at = (*place, "autoscaling_config", "min_replicas")
            yield self._at(at, _FAILS, SCALED_TO_ZERO, SCALED_TO_ZERO_INSTEAD)
        if scaling.get("policy"):
            yield self._at((*place, "autoscaling_config", "policy"), _DIFFERS, removed.POLICY, removed.POLICY_INSTEAD)
        if is_servds and removed.is_by_text(entry.get("request_router_config") or {}):
            yield self._at((*place, "request_router_config"), _DIFFERS, removed.TEXTS)
        for where, what, instead in removed.lost_options(entry.get("request_router_config") or {}):
            yield self._at((*place, "request_router_config", *where), _DIFFERS, what, instead)
        yield from self._log_level(place, entry)
        options = entry.get("ray_actor_options") or {}
        at = (*place, "ray_actor_options")
        if "env_vars" in options:
            yield self._at((*at, "env_vars"), _TRANSLATED, f"`env_vars` {IGNORED_WITHOUT_A_WORD} but in `runtime_env`")
        if "object_store_memory" in options:
            what = f"`object_store_memory` {IGNORED_WITHOUT_A_WORD}"
            yield self._at((*at, "object_store_memory"), _DROPPED, what, "leave it out")
        yield from self._environment((*at, "runtime_env"), options.get("runtime_env") or {})

    def _era_key(self, place: Place, key: str, default: int) -> Finding:
        what = f"`{key}` {IGNORED_WITHOUT_A_WORD}, {default} applies: it is `{_ERA_KEYS[key]}` there"
        return self._at((*place, key), _TRANSLATED, what)


def applications(value: Mapping[str, Any]) -> list[tuple[Place, Mapping[str, Any]]]:
    """Place and content of each application of a valid document; the place of a single-app config is ()."""
    if "applications" not in value:
        return [((), value)]
    return [(("applications", index), app) for index, app in enumerate(value["applications"])]


def local_directories(env: Mapping[str, Any]) -> list[str]:
    """Paths of the directories of this host that an environment names; `local:` ones lie on the nodes, and are none."""
    found = [uri for uri in runtime_env.local_uris(env) if not uri.startswith("local:")]
    return [runtime_env.local_path(uri) for uri in found if runtime_env.is_local_directory(uri)]


def is_uploaded(env: Mapping[str, Any]) -> bool:
    """Whether code of this environment is sent to the cluster."""
    return bool(local_directories(env))


def environments(app: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The runtime environment of an application, then those that its deployments have in the document."""
    yield app.get("runtime_env") or {}
    for entry in app.get("deployments") or ():
        yield (entry.get("ray_actor_options") or {}).get("runtime_env") or {}


def _all_environments(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for _, app in applications(value):
        yield from environments(app)


def with_environments(
    value: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """A copy of a document with each of its runtime environments, those of deployments included, as `change` gives it."""
    found = dict(value)
    for key in ("applications", "deployments"):
        if found.get(key):
            found[key] = [with_environments(one, change) for one in found[key]]
    if found.get("runtime_env"):
        found["runtime_env"] = change(found["runtime_env"])
    options = found.get("ray_actor_options")
    if options and options.get("runtime_env"):
        found["ray_actor_options"] = {**options, "runtime_env": change(options["runtime_env"])}
    return found
