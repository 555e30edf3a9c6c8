"""The form of everything that crosses a process boundary, and the record of it: `python -m tests.house.forms` writes it anew."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import servd.controller.metrics_desk
import servd.controller.plan.facts
import servd.observability.error_groups
import servd.observability.figures
import servd.wire.daemon_messages  # noqa: F401 - all of them make their messages known
from servd.ground.package import PROTOCOL
from servd.ground.settings import Settings
from servd.wire import codec

RECORD = Path(__file__).with_name("forms.json")
Forms = dict[str, list[str]]
"""Message -> its fields in order: `name: type`, and ` =` where there is a default."""


def forms() -> Forms:
    """As the code has them."""
    known = {**codec._BY_NAME, Settings.__name__: Settings}
    # tests make some of their own known
    kinds = {name: kind for name, kind in known.items() if kind.__module__.startswith("servd.")}
    return {name: [_shown(field) for field in dataclasses.fields(kind)] for name, kind in sorted(kinds.items())}


def _shown(field: "dataclasses.Field[Any]") -> str:
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    # a module may move: names of messages count, not their places
    kind = re.sub(r"\w+\.", "", kind)
    return f"{field.name}: {kind}{' =' if has_default else ''}"


def breaks(before: Forms, after: Forms) -> list[str]:
    """What who knows only `before` would misunderstand."""
    found = [f"{name} is gone" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if new[: len(old)] != old:
            found.append(f"{name} has other fields: {old} became {new}")
        found += [f"{name} has a new field without a default: {field}" for field in new[len(old) :] if field[-1] != "="]
    return sorted(found)


def recorded() -> tuple[int, Forms]:
    """Protocol and forms as last recorded."""
    record = json.loads(RECORD.read_text())
    return record["protocol"], record["forms"]


if __name__ == "__main__":
    RECORD.write_text(json.dumps({"protocol": PROTOCOL, "forms": forms()}, indent=1) + "\n")
