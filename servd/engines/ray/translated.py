"""A valid servd document as the one that today's Ray Serve takes (`PUT /api/serve/applications/`). Pure.

How this works: keys get today's names, servd's own are left out, and where the two have different defaults servd's is written
out for every deployment that is known, so that the same document does the same there.
"""

from collections.abc import Callable, Mapping
from typing import Any

from servd.documents import runtime_env
from servd.engines.ray import removed
from servd.engines.ray.described import DescribedApplication
from servd.exceptions import ConfigError

DEFAULT_ONGOING, DEFAULT_QUEUED, DEFAULT_TARGET = 100, 10_000, 1.0
DEFAULT_HOST = "127.0.0.1"
NEW_FIRST = 100
"""Percent: a redeploy starts all new replicas before it stops old ones."""
_AUTO = "auto"
_ERA_CAP, _CAP = "max_concurrent_queries", "max_ongoing_requests"
_ERA_TARGET, _TARGET = "target_num_ongoing_requests_per_replica", "target_ongoing_requests"
_NOT_THERE = frozenset({*removed.OWN_OPTIONS, *removed.CODE_OPTIONS, "is_driver_deployment", "route_prefix"})
ENTRY = "servd.engines.on_ray.entry:build"
"""What builds an application that is written with `import servd`."""
Move = Callable[[str], str]
"""From a `working_dir` or an item of `py_modules`, absolute, to what is written in its place."""


def todays_document(
    value: Mapping[str, Any],
    described: Mapping[str, DescribedApplication],
    *,
    move: Move = lambda uri: uri,
    host: str | None = None,
    working_dir: str | None = None,
) -> dict[str, Any]:
    """The document there.

    Raises:
        ConfigError: the document names a deployment that the code has not.

    Args:
        value: as written, valid for servd, single-app or multi-app, with absolute paths.
        described: applications whose code is known, by name; all of their deployments are listed.
        host: of the data port, in place of the document's.
        working_dir: for applications that name none.
    """
    is_multi = "applications" in value
    http = dict(value.get("http_options") or {}) if is_multi else {key: value[key] for key in ("port",) if key in value}
    given = http.pop("host", None) if is_multi else value.get("host")
    found: dict[str, Any] = {}
    if is_multi:
        kept = {key: item for key, item in value.items() if key not in ("applications", "http_options")}
        if kept.get("proxy_location") == "NoServer":
            kept["proxy_location"] = "Disabled"
        found.update(_with_log_level(kept))
    found["http_options"] = {"host": host or given or DEFAULT_HOST, **http}
    apps = value["applications"] if is_multi else [value]
    translate = _Translation(move, working_dir)
    found["applications"] = [translate.application(app, described.get(app.get("name") or "default")) for app in apps]
    return found


class _Translation:
    def __init__(self, move: Move, working_dir: str | None) -> None:
        self._move, self._working_dir = move, working_dir

    def application(self, app: Mapping[str, Any], code: DescribedApplication | None) -> dict[str, Any]:
        entries = list(app.get("deployments") or ())
        known = code.deployments if code else {}
        prefixes = [entry["route_prefix"] for entry in entries if "route_prefix" in entry]
        default = prefixes[0] if prefixes else code.route_prefix if code else "/"
        env = self._environment(app.get("runtime_env") or {})
        if self._working_dir is not None and not env.get("working_dir"):
            env["working_dir"] = self._working_dir
        kept = {
            key: item
            for key, item in app.items()
            if key not in ("name", "route_prefix", "import_path", "args", "runtime_env", "deployments", "host", "port")
        }
        listed = {entry["name"] for entry in entries}
        if code and (unknown := sorted(listed - known.keys())):
            name = app.get("name") or "default"
            raise ConfigError(
                f"application {name!r} has no deployment {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}"
            )
        entries += [{"name": name} for name in known if name not in listed]
        return {
            "name": app.get("name") or "default",
            "route_prefix": app.get("route_prefix", default),
            "import_path": app["import_path"],
            **({"args": app["args"]} if app.get("args") else {}),
            "runtime_env": env,
            **_with_log_level(kept),
            "deployments": [self.deployment(entry, known.get(entry["name"], {})) for entry in entries],
        }

    def deployment(self, entry: Mapping[str, Any], code: Mapping[str, Any]) -> dict[str, Any]:
        """code: options that it has there; {} = not known."""
        found = {key: item for key, item in entry.items() if key not in _NOT_THERE}
        cap = found.pop(_ERA_CAP, None)
        if found.get(_CAP) is None:
            found[_CAP] = cap if cap is not None else code.get(_ERA_CAP, DEFAULT_ONGOING)
        if found.get("max_queued_requests") is None:
            found["max_queued_requests"] = code.get("max_queued_requests", DEFAULT_QUEUED)
        if found.get("max_surge_percent") is None:
            surge = code.get("max_surge_percent")
            found["max_surge_percent"] = NEW_FIRST if surge is None else surge
        if found.get("autoscaling_config"):
            found["autoscaling_config"] = _scaling(found["autoscaling_config"], found.get("num_replicas") == _AUTO)
        elif code.get("autoscaling_config") and found.get("num_replicas") is None:
            # an override replaces the whole: the code's, with the target that it leaves to the default
            found["autoscaling_config"] = _scaling(code["autoscaling_config"], is_auto=False)
        if found.get("ray_actor_options"):
            found["ray_actor_options"] = self._actor_options(found["ray_actor_options"])
        if found.get("request_router_config"):
            found["request_router_config"] = removed.translated_router(found["request_router_config"])
        return _with_log_level(found)

    def _actor_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: item for key, item in options.items() if key not in removed.ACTOR_OPTIONS}
        env = dict(found.pop("runtime_env", None) or {})
        if options.get("env_vars"):
            env["env_vars"] = {**options["env_vars"], **(env.get("env_vars") or {})}
        return {**found, **({"runtime_env": self._environment(env)} if env else {})}

    def _environment(self, env: Mapping[str, Any]) -> dict[str, Any]:
        # what they exclude stays out when a directory is packed
        found = {key: item for key, item in env.items() if key != "excludes" and item is not None}
        if isinstance(found.get("working_dir"), str):
            found["working_dir"] = self._move(found["working_dir"])
        if found.get("py_modules"):
            found["py_modules"] = [self._move(uri) for uri in found["py_modules"] if uri is not None]
        return found


def _scaling(config: Mapping[str, Any], is_auto: bool) -> dict[str, Any]:
    found = {_TARGET if key == _ERA_TARGET else key: item for key, item in config.items()}
    if not is_auto:
        # beside "auto" it is 2 in both
        found.setdefault(_TARGET, DEFAULT_TARGET)
    return found


def _with_log_level(value: Mapping[str, Any]) -> dict[str, Any]:
    log = value.get("logging_config")
    if not isinstance(log, Mapping) or not isinstance(log.get("log_level"), str):
        return dict(value)
    return {**value, "logging_config": {**log, "log_level": log["log_level"].upper()}}


def through_entry(app: Mapping[str, Any], written: Mapping[str, Any], package: str = "") -> dict[str, Any]:
    """A translated application that is written with `import servd`, so that the cluster builds it with servd's package.

    Args:
        app: translated. written: the same in the document. package: URI of the package; "" = the image has servd.
    """
    own = {
        entry["name"]: {key: entry[key] for key in removed.PASSED_ON if key in entry}
        for entry in written.get("deployments") or ()
    }
    args = {
        "name": app["name"],
        "import_path": app["import_path"],
        "args": app.get("args") or {},
        "options": {name: options for name, options in own.items() if options},
    }
    env = dict(app["runtime_env"])
    if package:
        env["py_modules"] = [*env.get("py_modules", ()), package]
    # each in its place
    changed = {"import_path": ENTRY, "args": args, "runtime_env": env}
    found = {key: changed.pop(key, item) for key, item in app.items()}
    deployments = found.pop("deployments")
    return {**found, **changed, "deployments": deployments}


def moved_to(code: str, directories: list[str]) -> Move:
    """Puts `code` in the place of local directories.

    Args:
        code: `local:///DIR` where every node has them, or the URI of an archive.
        directories: all that the document names, absolute. `code` stands for the only one, or for the folder that holds them all.
    """
    root = _common(directories)

    def move(uri: str) -> str:
        path = runtime_env.local_path(uri)
        if runtime_env.is_remote(uri) or uri.startswith("local:") or path not in directories:
            return uri
        below = path[len(root) :].strip("/")
        return f"{code.rstrip('/')}/{below}" if below else code

    return move


def _common(paths: list[str]) -> str:
    split = [path.split("/") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)
