"""Runtime environments: which ones are valid, and how two of them merge. Touches no disk.

An environment is a plain dictionary as users write it. `faults` checks it, `normalised` brings its URIs into
the form in which they are stored, `merge` lays a deployment's environment over its application's.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from servd.exceptions import ConfigError

Fault = tuple[tuple[str | int, ...], str]
"""Where (keys and indexes from the environment down) and why."""

FORMS = (
    "an https: URI of a .zip, a file: URI of a .zip, an http: URI of a .zip on a loopback host, "
    "or an absolute local directory"
)
REFUSED = {
    "conda": "servd has no conda environments: start the daemon in one, or use pip",
    "container": "servd has no containers: start the daemon in one",
    "image_uri": "servd has no containers: start the daemon in one",
    "java_jars": "servd runs Python alone",
    "py_executable": "servd runs replicas with its own interpreter: start the daemon with another one",
    "worker_process_setup_hook": "call it at the top of the module of the application: it is imported once per fork server",
    "nsight": "profile the process: `servd stack`, or a profiler on the replica's pid",
    "rocprof_sys": "profile the process: `servd stack`, or a profiler on the replica's pid",
}
UV_KEYS = ("packages", "uv_check")
_UV_REFUSED = {
    "uv_version": "pip installs the list: its packages are the same",
    "uv_pip_install_options": "write option lines of pip into the list",
}
PIP_KEYS = ("packages", "pip_check", "pip_version")
CONFIG_KEYS = ("setup_timeout_seconds", "eager_install")
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|::1)\Z")
_PIN = re.compile(r"#sha256=([0-9A-Fa-f]{64})\Z")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def uri_fault(uri: Any) -> str:
    """Why `uri` is no `working_dir` or item of `py_modules`; "" if it is one."""
    if not isinstance(uri, str):
        return f"must be a string, got {type(uri).__name__}"
    if "\0" in uri:
        return "holds a NUL character"
    if uri.startswith("/"):
        return ""
    if not _SCHEME.match(uri):
        return f"{uri!r} is a relative path; give {FORMS} (the CLI resolves relative paths of a file by itself)"
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
    except ValueError as error:
        return f"{uri!r} is no valid URI: {error}"
    if reason := _pin_fault(uri, parts.fragment):
        return reason
    if parts.scheme in ("file", "local"):
        if host not in ("", "localhost") or not parts.path.startswith("/"):
            return f"{uri!r} must name an absolute path on this host: {parts.scheme}:///..."
        if parts.fragment and not parts.path.endswith(".zip"):
            return f"{uri!r} pins a directory: only a .zip has a sum"
        return ""
    if parts.scheme not in ("https", "http") or not host:
        return f"{uri!r} is not supported; give {FORMS}"
    if parts.scheme == "http" and not is_loopback(host):
        return f"{uri!r} is neither https: nor on a loopback host; give {FORMS}"
    return "" if parts.path.endswith(".zip") else f"{uri!r} must point to a .zip file"


def _pin_fault(uri: str, fragment: str) -> str:
    if fragment.startswith("sha256") and pin_of(uri) is None:
        return f"{uri!r} has a malformed pin: #sha256= and 64 hexadecimal digits"
    return ""


def pin_of(uri: str) -> str | None:
    """The SHA-256 in lower-case hexadecimal that a URI pins its archive to (`#sha256=...`); None without a pin."""
    found = _PIN.search(uri)
    return found[1].lower() if found else None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this host's loopback, by its spelling."""
    return _LOOPBACK.match(host) is not None


def has_scheme(uri: str) -> bool:
    """Whether this is a URI rather than a path."""
    return _SCHEME.match(uri) is not None


def is_remote(uri: str) -> bool:
    """Whether the valid `uri` has to be fetched."""
    return uri.startswith(("http:", "https:"))


def local_path(uri: str) -> str:
    """Path behind an absolute path or `file:` URI."""
    return unquote(urlsplit(uri).path) if uri.startswith("file:") else uri


def is_local_directory(uri: str) -> bool:
    """Whether the valid `uri` stands for a local directory, by its name: local and not a `.zip`."""
    return not is_remote(uri) and not local_path(uri).endswith(".zip")


def file_uri(path: str) -> str:
    """`file:` URI of an absolute path."""
    return "file://" + quote(path)


def uri_faults(env: Mapping[str, Any]) -> list[Fault]:
    """Faults of `working_dir` and `py_modules`."""
    found: list[Fault] = []
    if env.get("working_dir") is not None and (reason := uri_fault(env["working_dir"])):
        found.append((("working_dir",), reason))
    modules = env.get("py_modules")
    if modules is None:
        return found
    if not isinstance(modules, list | tuple):
        return [*found, (("py_modules",), f"must be a list of URIs, got {type(modules).__name__}")]
    for index, module in enumerate(modules):
        if module is not None and (reason := uri_fault(module)):
            found.append((("py_modules", index), reason))
    return found


def content_faults(env: Mapping[str, Any]) -> list[Fault]:
    """Faults of everything but the URIs: `env_vars`, `pip`, `excludes`, `config`, refused keys."""
    found: list[Fault] = [((key,), reason) for key, reason in REFUSED.items() if env.get(key) is not None]
    found += _env_vars_faults(env.get("env_vars"))
    found += _pip_faults(env.get("pip"))
    found += _uv_faults(env.get("uv"), env.get("pip"))
    excludes = env.get("excludes")
    if excludes is not None and not _is_strings(excludes):
        found.append((("excludes",), "must be a list of patterns (strings)"))
    found += _config_faults(env.get("config"))
    return found


def faults(env: Mapping[str, Any]) -> list[Fault]:
    """Everything that is wrong with an environment, as far as it shows without looking at the disk."""
    return uri_faults(env) + content_faults(env)


def check_application(name: str, env: Mapping[str, Any], overrides: Iterable[Mapping[str, Any]]) -> None:
    """Check what the schema leaves open, in an application's environment and its deployments'.

    Args:
        env: of the application.
        overrides: deployment overrides of the document.

    Raises:
        ConfigError: lists every field with its value.
    """
    lines = [_line(f'application "{name}": runtime_env', fault) for fault in content_faults(env)]
    for override in overrides:
        own = (override.get("ray_actor_options") or {}).get("runtime_env") or {}
        where = f'application "{name}", deployment "{override.get("name")}": ray_actor_options.runtime_env'
        lines += [_line(where, fault) for fault in content_faults(own)]
    if lines:
        raise ConfigError("\n".join(lines))


def _line(where: str, fault: Fault) -> str:
    loc, reason = fault
    return f"{'.'.join((where, *map(str, loc)))}: {reason}"


def unknown_keys(env: Mapping[str, Any]) -> list[str]:
    """Keys without effect here; worth a warning."""
    known = {"working_dir", "py_modules", "env_vars", "pip", "uv", "excludes", "config", *REFUSED}
    config = [f"config.{key}" for key in env.get("config") or () if key not in CONFIG_KEYS]
    return [str(key) for key in env if key not in known] + config


def normalised(env: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with absolute paths and `local:` URIs as `file:` URIs, null items of `py_modules` left out."""
    result = dict(env)
    if isinstance(result.get("working_dir"), str):
        result["working_dir"] = _as_uri(result["working_dir"])
    if isinstance(result.get("py_modules"), list | tuple):
        modules = [module for module in result["py_modules"] if module is not None]
        # what is no text is refused where all faults are told
        result["py_modules"] = [_as_uri(module) if isinstance(module, str) else module for module in modules]
    return result


def local_uris(env: Mapping[str, Any]) -> Iterator[str]:
    """Every `working_dir` and `py_modules` entry of a valid environment that lies on this host."""
    for uri in (env.get("working_dir"), *(env.get("py_modules") or ())):
        if isinstance(uri, str) and not is_remote(uri):
            yield uri


def merge(app_env: Mapping[str, Any], own_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Environment of a deployment's replicas.

    Args:
        app_env: of the application.
        own_env: of the deployment, from its override or from code; None = the deployment has none.

    Returns:
        `app_env` updated key by key with `own_env`; lists replace. `env_vars` are merged variable by variable
        (the deployment wins) and always present, unless `own_env` is None.

    Source: Ray Serve 2.5, override_runtime_envs_except_env_vars.
    """
    if own_env is None:
        return dict(app_env)
    variables = {**(app_env.get("env_vars") or {}), **(own_env.get("env_vars") or {})}
    return {**app_env, **own_env, "env_vars": variables}


def fingerprint(env: Mapping[str, Any]) -> str:
    """Text that is equal for environments that mean the same: key order and empty `env_vars` do not count."""
    relevant = {key: value for key, value in env.items() if value is not None and (key != "env_vars" or value)}
    return json.dumps(relevant, sort_keys=True, default=str)


def _as_uri(uri: str) -> str:
    if uri.startswith("local:"):
        # today's word for a directory that lies on the host
        return "file:" + uri.removeprefix("local:")
    return file_uri(uri) if uri.startswith("/") else uri


def _is_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _env_vars_faults(variables: Any) -> list[Fault]:
    if variables is None:
        return []
    if not isinstance(variables, Mapping):
        return [(("env_vars",), f"must map names to strings, got {type(variables).__name__}")]
    found: list[Fault] = []
    for key, value in variables.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            found.append((("env_vars", str(key)), f"{key!r} is no name of an environment variable"))
        elif not isinstance(value, str):
            found.append((("env_vars", key), f"must be a string, got {value!r} ({type(value).__name__}): quote it"))
        elif "\0" in value:
            found.append((("env_vars", key), "holds a NUL character"))
    return found


def _pip_faults(pip: Any) -> list[Fault]:
    if pip is None or isinstance(pip, str):
        return []
    if isinstance(pip, list | tuple):
        return [] if _is_strings(pip) else [(("pip",), "must be a list of requirements (strings)")]
    if not isinstance(pip, Mapping):
        return [(("pip",), "must be a list of requirements, the path of a requirements file, or an object")]
    found: list[Fault] = [
        (("pip", str(key)), f"unknown key; pip has {', '.join(PIP_KEYS)}") for key in pip if key not in PIP_KEYS
    ]
    if "packages" not in pip:
        found.append((("pip", "packages"), "is required"))
    elif not (_is_strings(pip["packages"]) or isinstance(pip["packages"], str)):
        found.append((("pip", "packages"), "must be a list of requirements (strings)"))
    if not isinstance(pip.get("pip_check", False), bool):
        found.append((("pip", "pip_check"), "must be true or false"))
    if not isinstance(pip.get("pip_version", ""), str):
        found.append((("pip", "pip_version"), "must be a string"))
    return found


def pip_field(env: Mapping[str, Any]) -> Any:
    """What is to be installed, as a `pip` field; an `uv` field asks for the same. None for nothing."""
    uv = env.get("uv")
    if not isinstance(uv, Mapping):
        return env.get("pip") if uv is None else uv
    return {"packages": uv["packages"], "pip_check": uv.get("uv_check", False)}


def _uv_faults(uv: Any, pip: Any) -> list[Fault]:
    if uv is None:
        return []
    if pip is not None:
        return [(("uv",), "pip and uv exclude each other: give one list")]
    if not isinstance(uv, Mapping):
        return [(("uv", *loc[1:]), reason) for loc, reason in _pip_faults(uv)]
    found: list[Fault] = [
        (("uv", str(key)), _UV_REFUSED.get(str(key)) or f"unknown key; uv has {', '.join(UV_KEYS)}")
        for key in uv
        if key not in UV_KEYS
    ]
    as_pip = {{"uv_check": "pip_check"}.get(key, key): value for key, value in uv.items() if key in UV_KEYS}
    return found + [
        (("uv", {"pip_check": "uv_check"}.get(str(loc[1]), loc[1])), reason) for loc, reason in _pip_faults(as_pip)
    ]


def _config_faults(config: Any) -> list[Fault]:
    if config is None:
        return []
    if not isinstance(config, Mapping):
        return [(("config",), "must be an object")]
    found: list[Fault] = []
    timeout = config.get("setup_timeout_seconds", 600)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or not (timeout > 0 or timeout == -1):
        found.append((("config", "setup_timeout_seconds"), f"must be a whole number > 0, or -1, got {timeout!r}"))
    if not isinstance(config.get("eager_install", True), bool):
        found.append((("config", "eager_install"), "must be true or false"))
    return found
