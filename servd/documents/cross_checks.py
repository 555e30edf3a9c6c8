"""Rules of documents that reach over more than one key or object."""

from collections.abc import Mapping
from typing import Any

from servd.documents.checked import Fault


def repeated(items: Any, key: str, default: Any) -> list[tuple[int, Any]]:
    """(index, value) of every item whose `key` holds a string for the second time."""
    seen: dict[Any, int] = {}
    found: list[tuple[int, Any]] = []
    for index, item in enumerate(items if isinstance(items, list) else ()):
        value = item.get(key, default) if isinstance(item, Mapping) else None
        if not isinstance(value, str):
            continue
        seen[value] = seen.get(value, 0) + 1
        if seen[value] == 2:
            found.append((index, value))
    return found


def scaler_faults(raw: Mapping[str, Any]) -> list[Fault]:
    """Deployments that scale by themselves where the document says that somebody else does it."""
    items = raw.get("deployments")
    if raw.get("external_scaler_enabled") not in (True, 1, "true", "True", "yes", "on") or not isinstance(items, list):
        return []
    scaled = [
        item.get("name")
        for item in items
        if isinstance(item, Mapping)
        and (item.get("num_replicas") == "auto" or item.get("autoscaling_config") is not None)
    ]
    reason = "external_scaler_enabled excludes autoscaling, which {} has: take one of them out"
    return [(("external_scaler_enabled",), reason.format(", ".join(map(repr, scaled))))] if scaled else []


def tls_faults(raw: Mapping[str, Any]) -> list[Fault]:
    """What does not fit together in `ssl_...` options: place and reason."""
    faults: list[Fault] = []
    for one, other in (("ssl_certfile", "ssl_keyfile"), ("ssl_keyfile", "ssl_certfile")):
        if raw.get(one) and not raw.get(other):
            faults.append(((one,), f"a certificate and its key belong together: give {other} too"))
    if raw.get("ssl_keyfile_password") and not raw.get("ssl_keyfile"):
        faults.append((("ssl_keyfile_password",), "it opens the key of ssl_keyfile: give that too"))
    return faults


def item_faults(index: int, app: Mapping[str, Any]) -> list[Fault]:
    """Keys of an application that belong elsewhere in a V2 document, and an empty name."""
    name = app.get("name", "default")
    faults: list[Fault] = []
    if name == "":
        faults.append((("applications", index, "name"), "must be a nonempty string"))
    for key in ("host", "port"):
        if key in app:
            reason = (
                f'{key} {app[key]!r} of application "{name}" belongs to http_options '
                "in the top-level config, not to one application"
            )
            faults.append((("applications", index, key), reason))
    return faults
