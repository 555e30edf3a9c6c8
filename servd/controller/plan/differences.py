"""What differs between two wishes for one application, by the names that users know."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from servd.controller.plan.goal import ApplicationGoal
from servd.controller.plan.targets import without_empty_variables
from servd.documents.runtime_env import local_uris


def differences(name: str, before: Any, after: Any) -> Iterator[str]:
    """`name`, or the dotted names of the keys below it, where two JSON values differ."""
    # facts that went through the fact store have tuples where documents have lists
    before, after = json.loads(json.dumps([before, after], default=str))
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in {**before, **after}:
            yield from differences(f"{name}.{key}", before.get(key), after.get(key))
    else:
        yield name


def code_fields(old: ApplicationGoal, new: ApplicationGoal) -> list[str]:
    """What makes another code version: each of these restarts the whole application."""
    was, wish = old.document, new.document
    fields: list[str] = []
    for name in ("import_path", "args", "python_path", "driver_path"):
        fields += differences(name, getattr(was, name), getattr(wish, name))
    fields += differences("grpc_options.grpc_servicer_functions", old.grpc_servicers, new.grpc_servicers)
    if wish.application_hash or was.application_hash:
        fields.append("application (shipped by value)")
    fields += differences(
        "runtime_env", without_empty_variables(was.runtime_env), without_empty_variables(wish.runtime_env)
    )
    replaced = replaced_snapshots(old, new)
    fields += [f"source files in {directory}" for directory in local_uris(wish.runtime_env) if directory in replaced]
    return fields


def replaced_snapshots(old: ApplicationGoal, new: ApplicationGoal) -> dict[str, tuple[str, str]]:
    """Local directory as written -> its snapshots before and after, of each whose content differs."""
    return {
        directory: (old.snapshots[directory], snapshot)
        for directory, snapshot in new.snapshots.items()
        if old.snapshots.get(directory, snapshot) != snapshot
    }
