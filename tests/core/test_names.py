"""Names of applications and deployments: one rule on every way in, and file names and lines that hold any name."""

import logging
from typing import Any

import pytest

import servd
from servd.commands.log_files import patterns
from servd.controller.plan.change import put_application
from servd.documents.control_plane import ApplicationDocument
from servd.exceptions import ConfigError
from servd.ground.names import LONGEST_NAME, check_name, in_file_name, on_one_line
from servd.observability.line_formatter import LineFormatter
from servd.observability.logs import replica_file
from servd.schema import parse_v1, parse_v2
from tests.core.build import HTTP, a_goal
from tests.core.test_change import situation

GOOD = [
    "a",
    "text-ml_app.v2",
    "my app",
    "team/model",
    "a#b",
    "50%",
    "日本語",
    "e\u0301😀\u200d",
    "..",
    "x" * LONGEST_NAME,
]
BAD = ["a\nb", "a\0", "\x1b[2J", "a\x85b", "a\u2028b", "\ud800", "x" * (LONGEST_NAME + 1)]


@servd.deployment
class Model:
    pass


def a_class_called(name: str) -> type[Any]:
    return type(name, (), {})


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_names_that_people_use_are_taken(name: str) -> None:
    assert check_name(name) == name
    assert parse_v2({"applications": [{"name": name, "import_path": "m:a"}]}).applications[0].name == name
    assert Model.options(name=name).name == name
    assert servd.build(Model.options(name=name).bind(), name).ingress_name == name
    assert put_application(a_goal(), ApplicationDocument(name, "m:a"), HTTP, situation(), {}).application(name)


@pytest.mark.parametrize("name", BAD, ids=lambda name: ascii(name)[:20])
def test_names_that_break_something_are_refused_on_every_way_in(name: str) -> None:
    with pytest.raises(ValueError):
        servd.deployment(name=name)(Model.func_or_class)
    with pytest.raises(ValueError):
        Model.options(name=name)
    with pytest.raises(ValueError):
        servd.run(Model.bind(), name=name, local=True)
    with pytest.raises(ValueError):
        servd.build(Model.bind(), name)
    with pytest.raises(ValueError):
        servd.get_deployment_handle(name, "app")
    with pytest.raises(ValueError):
        servd.get_deployment_handle("D", name)
    with pytest.raises(ConfigError, match="application: "):
        put_application(a_goal(), ApplicationDocument(name, "m:a"), HTTP, situation(), {})


@pytest.mark.parametrize("name", ["a\nb", "a\0", "x" * (LONGEST_NAME + 1)], ids=lambda name: ascii(name)[:20])
def test_documents_say_which_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\n  applications\.0\.name: a name "):
        parse_v2({"applications": [{"name": name, "import_path": "m:a"}]})
    with pytest.raises(ConfigError, match=r"\n  deployments\.1\.name: a name "):
        parse_v1({"import_path": "m:a", "deployments": [{"name": "D"}, {"name": name}]})


def test_the_name_of_a_class_is_a_name_too() -> None:
    with pytest.raises(ValueError, match="control characters"):
        servd.deployment(a_class_called("a\nb"))
    long = a_class_called("x" * LONGEST_NAME)
    with pytest.raises(ValueError, match="258"):
        # the second of that name in one application is called ..._1
        servd.build(Model.bind(servd.deployment(long).bind(), servd.deployment(long).bind()))


@pytest.mark.parametrize("name", [*GOOD, *BAD, "日" * 600], ids=lambda name: ascii(name)[:20])
def test_a_log_file_fits_whatever_the_name(name: str) -> None:
    full_name = f"{name}_{name}"
    file = replica_file(full_name, f"{full_name}#abcdef")
    # rotated ones end in .5
    assert len(file.encode()) + 2 <= 255
    assert "/" not in file
    assert "\0" not in file
    assert "\n" not in file
    assert file.startswith("deployment_")
    assert file.endswith("#abcdef.log")


def test_names_that_were_short_enough_keep_their_files() -> None:
    assert replica_file("app_D", "app_D#abcdef") == "deployment_app_D_app_D#abcdef.log"
    assert replica_file("a/b_D", "a/b_D#abcdef") == "deployment_a_b_D_a_b_D#abcdef.log"


def test_long_names_have_files_of_their_own() -> None:
    assert in_file_name("x" * 300) != in_file_name("x" * 299)
    assert in_file_name("日" * 200) != in_file_name("日" * 199)


def test_logs_are_found_by_names_of_any_length() -> None:
    full_name = "x" * 300
    file = f"serve/{replica_file(full_name, f'{full_name}#abcdef')}"
    found = {"applications": {"app": {"deployments": {full_name: {"name": "D"}}}}}
    assert patterns(found, "app") == (f"{file.removesuffix('abcdef.log')}*.log", "serve/fork_server.log")
    assert file.removeprefix(f"serve/deployment_{in_file_name(full_name)}") in patterns(None, f"{full_name}#abcdef")[0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("app_D", ("serve/deployment_app_D_*_app_D_*#*.log", "serve/deployment_app_D_app_D#*.log")),
        (
            "app_D#abcdef",
            (
                "serve/deployment_*_app_D#abcdef.log",
                "serve/deployment_*_app_D#abcdef.before-*.log",
                "serve/deployment_app_D#abcdef_app_D#abcdef#*.log",
            ),
        ),
    ],
)
def test_logs_of_those_that_are_gone_are_found_by_name_or_replica(target: str, expected: tuple[str, ...]) -> None:
    assert patterns(None, target) == expected


def test_no_name_ends_a_line() -> None:
    assert on_one_line("a\nb\0\x1b\u2028 c/é") == "a\\nb\\x00\\x1b\\u2028 c/é"
    line = LineFormatter("replica", "a\nERROR faked#x", lambda: ("id", "", "", "/r\n", "a\n"))
    text = line.format(logging.makeLogRecord({"msg": "said", "filename": "f.py", "lineno": 1}))
    assert "\n" not in text
    assert "a\\nERROR faked#x id /r\\n a\\n f.py:1 - said" in text
