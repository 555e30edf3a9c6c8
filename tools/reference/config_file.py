"""The page of every key of a config file, from the models that check it and the texts of `key_texts`."""

from typing import Any

from pydantic.fields import FieldInfo

from servd.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    HTTPOptions,
    LoggingConfig,
    RequestRouterConfig,
)
from servd.documents.checked import Document
from servd.documents.runtime_env import REFUSED
from servd.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
    gRPCOptionsSchema,
)
from tools.reference.key_texts import ENVIRONMENT, TEXTS, TITLES
from tools.reference.tables import MADE, table

MODELS: tuple[type[Document], ...] = (
    ServeDeploySchema,
    ServeApplicationSchema,
    DeploymentSchema,
    AutoscalingConfig,
    RayActorOptionsSchema,
    HTTPOptionsSchema,
    gRPCOptionsSchema,
    LoggingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    RequestRouterConfig,
    HTTPOptions,
)
_NESTED = {"autoscaling_config", "ray_actor_options", "http_options", "grpc_options", "logging_config", "runtime_env"}

_INTRO = """# Every key of a config file

A config file is YAML or JSON. One with `applications` at its top has [several applications](#top-level); one without is [one application](#an-application), called
`default`. An unknown key, or a value that cannot be meant, refuses the whole file: every fault is listed with its place, and with the nearest key that there is.
`servd validate FILE` finds them without a daemon, `servd schema` prints a JSON Schema for editors, `servd deploy --plan FILE` says what would change.

```yaml
# serve.yaml
http_options:
  host: 127.0.0.1
  port: 8000
applications:
- name: shop
  route_prefix: /shop
  import_path: shop:app
  runtime_env:
    working_dir: .
    env_vars: {MODE: fast}
  deployments:
  - name: Shop
    autoscaling_config: {min_replicas: 1, max_replicas: 4, target_ongoing_requests: 2}
```

Defaults below are those of a key that neither file nor code gives: of a deployment the code's `@deployment(...)` counts before them, and the file before the code. An older
name of a key works too; both at once are refused.

"""


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        kinds = dict.fromkeys(_kind(part) for part in schema["anyOf"] if part.get("type") != "null")
        return " or ".join(kind for kind in kinds if kind)
    if "$ref" in schema:
        return "text" if "Mode" in schema["$ref"] else "object"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value not in (None, "", {}))
    kind = {"string": "text", "boolean": "`true`, `false`", "integer": "whole number", "array": "list"}.get(
        schema.get("type", ""), schema.get("type", "any value")
    )
    return kind + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum", 2**63)
    # whole numbers above 0 begin at 1
    low = above + 1 if above is not None and schema.get("type") == "integer" else low
    words = [f"≥ {low}"] if low is not None else [f"> {above:g}"] if above is not None else []
    if high < 2**62:
        words.append(f"≤ {high:g}" if isinstance(high, float) else f"≤ {high}")
    return f", {', '.join(words)}" if words else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default_factory is not None or field.default is None:
        return ""
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{getattr(value, 'value', value)}`" if value != "" else ""


def _section(model: type[Document]) -> str:
    properties = model.model_json_schema()["properties"]
    later = {era: name for name, era in model.later_names.items()}
    rows = []
    first = DeploymentSchema.key_order if model is DeploymentSchema else ()
    for key in (*first, *(key for key in model.model_fields if key not in first)):
        field = model.model_fields[key]
        texts = TEXTS[model.__name__]
        name = f"`{later[key]}`, older `{key}`" if key in later else f"`{key}`"
        kind = "" if key in _NESTED else _kind(properties[key])
        rows.append((name, kind, _default(field), texts[key]))
    title, intro = TITLES[model.__name__]
    text = f"## {title}\n\n{intro}\n\n" + table(("Key", "Value", "Default", "Meaning"), rows)
    refused = {key: hint for key, hint in model.hints.items() if hint}
    if refused:
        text += "\nRefused, with what to do instead:\n\n" + table(
            ("Key", "Instead"), [(f"`{key}`", hint) for key, hint in sorted(refused.items())]
        )
    return text


def _environment() -> str:
    text = "## `runtime_env`\n\nWhat an application's processes get; more in [Python](../api.md#runtime-environments). `working_dir` of a\n"
    text += "file is resolved against the file's folder.\n\n"
    text += table(("Key", "Meaning"), [(f"`{key}`", meaning) for key, meaning in ENVIRONMENT.items()])
    return (
        text
        + "\nRefused, with what to do instead:\n\n"
        + table(("Key", "Instead"), [(f"`{key}`", hint) for key, hint in sorted(REFUSED.items())])
    )


def config_file() -> str:
    """The page."""
    sections = [_section(model) for model in MODELS]
    at = MODELS.index(RayActorOptionsSchema) + 1
    return MADE + _INTRO + "\n".join([*sections[:at], _environment(), *sections[at:]])
