"""The admin plane's own description: whole, unambiguous, and true of every route of the server."""

from collections import Counter
from typing import Any

from servd.rest.app import routes
from servd.rest.openapi import openapi_document
from tests.wire.fake_plane import FakePlane

VERBS = {"get", "put", "post", "delete"}


def described() -> dict[str, dict[str, Any]]:
    document: dict[str, dict[str, Any]] = openapi_document()["paths"]
    return document


def test_it_has_every_route_and_no_other() -> None:
    plane = FakePlane()
    served = {
        path: {verb.lower() for verb in make(*("1" for _ in range(path.count("{"))))}
        for path, make in routes(plane, "code", plane.metrics, plane.book, plane.figures).items()
    }
    assert {path: set(verbs) for path, verbs in described().items()} == served


def test_every_operation_says_what_it_takes_and_gives() -> None:
    ids: Counter[str] = Counter()
    for path, verbs in described().items():
        for verb, operation in verbs.items():
            ids[operation["operationId"]] += 1
            assert operation["summary"].endswith("."), path
            names = [item["name"] for item in operation.get("parameters", []) if item["in"] == "path"]
            assert names == [part[1:-1] for part in path.split("/") if part.startswith("{")]
            assert {"200", "401", "403", "405", "500"} <= set(operation["responses"]), (verb, path)
            if verb in ("put", "delete", "post") and not path.endswith(
                ("/scale", "/code/{sha256}", "/start", "/prune", "/upgrade")
            ):
                assert "412" in operation["responses"], path
                assert "If-Match" in [item["name"] for item in operation["parameters"]], path
            bodies = operation["responses"]["200"].get("content", {}).values()
            assert all(body["schema"] not in ({}, {"type": "object"}) or "openapi" in path for body in bodies), path
    assert set(ids.values()) == {1}


def test_references_have_a_target() -> None:
    document = openapi_document()

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(item) for item in value.values()))
        if isinstance(value, list):
            return set().union(*(references(item) for item in value))
        return set()

    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= set(document["components"]["schemas"])
    assert {"ServeDeploySchema", "ServeApplicationSchema", "ServeInstanceDetails", "ServeStatusSchema"} <= names


def test_a_plan_is_described_where_one_may_be_asked_for() -> None:
    asked = [
        (verb, path)
        for path, verbs in described().items()
        for verb, operation in verbs.items()
        if "dry_run" in [item["name"] for item in operation.get("parameters", [])]
    ]
    assert len(asked) == 4
    for verb, path in asked:
        if path.endswith("/prune"):
            continue
        schema = described()[path][verb]["responses"]["200"]["content"]["application/json"]["schema"]
        assert {"$ref": "#/components/schemas/Plan"} in schema.get("anyOf", [schema]), path
