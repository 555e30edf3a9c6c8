"""Requests made from the admin plane's own OpenAPI: no answer but those it describes, never a 5xx for a client's fault.

`test_openapi_fuzz` runs it, in a process of its own: to load schemathesis takes seconds, and no other test needs it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Response
from schemathesis.checks import CheckContext, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from servd.rest.access import AccessRules
from servd.rest.openapi import openapi_document
from tests.wire.fake_plane import FakePlane, Server, a_revision, an_application, an_instance


def described_body(context: CheckContext, response: Response, case: Any) -> bool | None:
    """The body is as described; that of an accepted PUT is empty, as 2.5 clients have it, unless it asked for a plan."""
    return response_schema_conformance(context, response, case) if response.content else None


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, described_body]

whole = schemathesis.openapi.from_dict(openapi_document())
# without the some two thousand requests that try every bound of every value in turn
brief = schemathesis.openapi.from_dict(openapi_document())
brief.config.phases.coverage.enabled = False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    instance = an_instance(running=True, revision=1, applications=(an_application("a"), an_application()))
    plane = FakePlane(instance, history=(a_revision(1, "a"),))
    folder: Path = tmp_path_factory.mktemp("admin")
    with Server(plane, AccessRules("127.0.0.1"), folder).running() as running:
        yield running


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@brief.parametrize()
@bounded(2)
def test_answers_are_those_described(case: Any, server: Server) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=10)


@whole.parametrize()
@bounded(200)
def test_answers_are_those_described_at_length(case: Any, server: Server) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=10)
