"""The page of all paths of the admin API, from its OpenAPI description."""

from typing import Any

from servd.rest.openapi import openapi_document
from tools.reference.tables import MADE, table

_INTRO = """# Every path of the admin API

Made of what `GET /api/openapi.json` of a daemon answers. What happens after a change, who is let in, and the two dialects are in [REST](../rest.md).

"""


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _shape(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        name = _name(schema)
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_shape(part) for part in schema[key]))
    if "const" in schema:
        return f"`{schema['const']!r}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_shape(schema['items'])}" if schema.get("items") else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_shape(schema['additionalProperties'])}"
    return str(kind)


def _content(found: dict[str, Any]) -> str:
    return ", ".join(f"{_shape(about['schema'])} (`{kind}`)" for kind, about in found.get("content", {}).items())


def _operation(verb: str, path: str, about: dict[str, Any]) -> str:
    lines = [f"### {verb.upper()} {path}\n\n{about['summary']}\n"]
    if parameters := about.get("parameters"):
        rows = [
            (f"`{item['name']}`", item["in"], _shape(item.get("schema", {})), item.get("description", ""))
            for item in parameters
        ]
        lines.append(table(("Parameter", "In", "Type", ""), rows))
    if body := about.get("requestBody"):
        lines.append(f"Body: {_content(body)}{'' if body['required'] else ', may be left out'}.\n")
    answers = about["responses"]
    ok = _content(answers["200"]) or "empty"
    header = ", with `ETag`" if "headers" in answers["200"] else ""
    others = ", ".join(f"`{status}`" for status in answers if status != "200")
    lines.append(f"Answer: `200`, {ok}{header}. Else {others}.\n")
    return "\n".join(lines)


def _model(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (f"`{key}`", _shape(about), "yes" if key in required else "")
        for key, about in schema.get("properties", {}).items()
    ]
    text = schema.get("description", "").split("\n\n")[0]
    return f"### {name}\n\n{text}\n\n" + (
        table(("Field", "Type", "Always there"), rows) if rows else f"{_shape(schema)}\n"
    )


def rest_api() -> str:
    """The page."""
    document = openapi_document()
    paths = [
        _operation(verb, path, about) for path, verbs in document["paths"].items() for verb, about in verbs.items()
    ]
    statuses = {
        status: answer["description"]
        for verbs in document["paths"].values()
        for about in verbs.values()
        for status, answer in about["responses"].items()
    }
    models = [_model(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return (
        MADE
        + _INTRO
        + "## Statuses\n\n"
        + table(("Status", "Means"), [(f"`{status}`", statuses[status]) for status in sorted(statuses)])
        + "\n## Paths\n\n"
        + "\n".join(paths)
        + "\n## Shapes\n\nWhat documents may hold is told with its meaning in [Every key of a config file](config.md).\n\n"
        + "\n".join(models)
    )
