"""An application of servd's in a process of a Ray cluster: imported and flattened, once, by whoever needs it there."""

from collections.abc import Mapping
from typing import Any

from servd.app.built import BuiltApplication, build_application
from servd.dag import HandleMaker
from servd.replica.code.importing import as_application, import_target

_built: dict[str, BuiltApplication] = {}


def built_from(order: Mapping[str, Any]) -> BuiltApplication:
    """The application of an order, see `entry.build`. Raises what the user's code raises."""
    key = f"{order['name']} {order['import_path']}"
    if key not in _built:
        target = as_application(import_target(order["import_path"]), order["args"])
        _built[key] = build_application(target, order["name"], HandleMaker())
    return _built[key]
