"""Resources of Kubernetes against the schema of their CRD, made strict: a key that it does not name is a fault.

`rayservice.json` is the part of KubeRay's RayService that servd writes. SERVD_TEST_CRD may name KubeRay's own file instead
(`ray.io_rayservices.yaml`), which is then read as data.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CRD = os.environ.get("SERVD_TEST_CRD", "")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list,
}  # fmt: skip
_INT32 = range(-(2**31), 2**31)


def ray_service_schema() -> Mapping[str, Any]:
    """Of `ray.io/v1`."""
    if not CRD:
        found = json.loads(Path(__file__).with_name("rayservice.json").read_text())
        return dict(found["schema"])
    versions = yaml.safe_load(Path(CRD).read_text())["spec"]["versions"]
    (v1,) = (one for one in versions if one["name"] == "v1")
    return dict(v1["schema"]["openAPIV3Schema"])


def faults(value: Any, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Everything of a value that the schema does not have."""
    if schema.get("x-kubernetes-int-or-string"):
        fits = isinstance(value, int | str) and not isinstance(value, bool)
    else:
        kind = schema["type"]
        fits = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if not fits:
        yield f"{place} is {value!r}"
        return
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{place} is {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is {value!r}"
    if schema.get("format") == "int32" and value not in _INT32:
        yield f"{place} is {value!r}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, schema["items"], f"{place}[{index}]")
    if isinstance(value, dict):
        yield from (f"{place}.{key} is missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            # the API server has its own rules for this one
            if inner is None and place != ".metadata":
                yield f"{place}.{key} is unknown"
            elif inner is not None:
                yield from faults(item, inner, f"{place}.{key}")
