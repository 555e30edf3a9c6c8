"""Runtime environments: forms of URIs, content, merging."""

from typing import Any

import pytest

from servd.documents import runtime_env
from servd.exceptions import ConfigError


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("https://h/a.zip", True),
        ("https://h/a.zip?x=1", True),
        ("https://h/archive/HEAD.tar", False),
        ("https:///a.zip", False),
        ("file:///srv/a.zip", True),
        ("file:///srv/app", True),
        ("file://other/srv/app", False),
        ("file:srv", False),
        ("/srv/a.zip", True),
        ("/srv/app", True),
        ("http://localhost:1/a.zip", True),
        ("http://127.0.0.1/a.zip", True),
        ("http://[::1]:80/a.zip", True),
        ("http://example.com/a.zip", False),
        ("http://localhost.example.com/a.zip", False),
        ("http://[::1/a.zip", False),
        (".", False),
        ("app", False),
        ("", False),
        ("~/app", False),
        ("s3://b/a.zip", False),
        ("gs://b/a.zip", False),
        ("gcs://b/a.zip", False),
        ("conda://x", False),
        ("pip://x", False),
        ("https://h/a.zip#sha256=" + "aB" * 32, True),
        ("file:///srv/a.zip#sha256=" + "0" * 64, True),
        ("https://h/a.zip#sha256=" + "0" * 63, False),
        ("https://h/a.zip#sha256=" + "g" * 64, False),
        ("file:///srv/app#sha256=" + "0" * 64, False),
        (3, False),
        ("/a\0b", False),
    ],
)
def test_uri_forms(uri: Any, accepted: bool) -> None:
    assert (runtime_env.uri_fault(uri) == "") is accepted


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"env_vars": {"A": 1}}, "env_vars.A"),
        ({"env_vars": {"A=B": "1"}}, "env_vars.A=B"),
        ({"env_vars": ["A"]}, "env_vars"),
        ({"pip": 3}, "pip"),
        ({"pip": [3]}, "pip"),
        ({"pip": {}}, "pip.packages"),
        ({"pip": {"packages": [], "colour": 1}}, "pip.colour"),
        ({"pip": {"packages": [], "pip_check": "yes"}}, "pip.pip_check"),
        ({"pip": {"packages": [], "pip_version": 3}}, "pip.pip_version"),
        ({"uv": 3}, "uv"),
        ({"uv": [3]}, "uv"),
        ({"uv": {}}, "uv.packages"),
        ({"uv": {"packages": [], "uv_version": "1"}}, "uv.uv_version"),
        ({"uv": {"packages": [], "uv_pip_install_options": ["--no-cache"]}}, "uv.uv_pip_install_options"),
        ({"uv": {"packages": [], "uv_check": "yes"}}, "uv.uv_check"),
        ({"uv": ["a"], "pip": ["a"]}, "uv"),
        ({"image_uri": "x"}, "image_uri"),
        ({"py_executable": "x"}, "py_executable"),
        ({"excludes": "x"}, "excludes"),
        ({"config": {"setup_timeout_seconds": 0}}, "config.setup_timeout_seconds"),
        ({"config": {"eager_install": 1}}, "config.eager_install"),
        ({"conda": "x"}, "conda"),
        ({"container": {}}, "container"),
        ({"working_dir": "."}, "working_dir"),
        ({"py_modules": "x"}, "py_modules"),
        ({"py_modules": [None, "."]}, "py_modules.1"),
    ],
)
def test_faults_name_their_place(env: dict[str, Any], place: str) -> None:
    assert [".".join(map(str, loc)) for loc, _ in runtime_env.faults(env)] == [place]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"env_vars": {"A": "1"}, "pip": ["numpy"], "excludes": ["*.log"]},
        {"pip": "requirements.txt", "config": {"setup_timeout_seconds": -1, "eager_install": False}},
        {"pip": {"packages": ["a"], "pip_check": False, "pip_version": "==23"}},
        {"uv": ["a"]},
        {"uv": "requirements.txt", "pip": None},
        {"uv": {"packages": ["a"], "uv_check": True}},
        {"working_dir": None, "py_modules": None, "env_vars": None, "pip": None, "config": None},
        {"nonsense": 1},
    ],
)
def test_good_environments_have_no_faults(env: dict[str, Any]) -> None:
    assert runtime_env.faults(env) == []


@pytest.mark.parametrize(
    ("env", "installed"),
    [
        ({}, None),
        ({"pip": ["a"], "uv": None}, ["a"]),
        ({"uv": ["a"]}, ["a"]),
        ({"uv": "r.txt"}, "r.txt"),
        ({"uv": {"packages": ["a"], "uv_check": True}}, {"packages": ["a"], "pip_check": True}),
    ],
)
def test_a_list_for_uv_is_installed_as_one_for_pip(env: dict[str, Any], installed: Any) -> None:
    assert runtime_env.pip_field(env) == installed


def test_unknown_keys_are_named() -> None:
    assert runtime_env.unknown_keys({"pip": [], "nonsense": 1}) == ["nonsense"]
    assert runtime_env.unknown_keys({"config": {"eager_install": True, "log_files": []}}) == ["config.log_files"]


def test_application_check_names_application_deployment_and_field() -> None:
    overrides = [{"name": "D", "ray_actor_options": {"runtime_env": {"env_vars": {"B": 2}}}}, {"name": "E"}]
    with pytest.raises(ConfigError) as error:
        runtime_env.check_application("fruit", {"env_vars": {"A": 1}}, overrides)
    text = str(error.value)
    assert 'application "fruit": runtime_env.env_vars.A' in text
    assert 'deployment "D": ray_actor_options.runtime_env.env_vars.B' in text


@pytest.mark.parametrize(
    ("app_env", "own_env", "merged"),
    [
        ({"working_dir": "w"}, None, {"working_dir": "w"}),
        ({"working_dir": "w"}, {}, {"working_dir": "w", "env_vars": {}}),
        ({"working_dir": "w"}, {"working_dir": "v"}, {"working_dir": "v", "env_vars": {}}),
        ({"pip": ["a"]}, {"pip": ["b"]}, {"pip": ["b"], "env_vars": {}}),
        (
            {"env_vars": {"A": "1", "B": "1"}},
            {"env_vars": {"B": "2"}},
            {"env_vars": {"A": "1", "B": "2"}},
        ),
        ({"env_vars": None}, {"env_vars": {"B": "2"}}, {"env_vars": {"B": "2"}}),
    ],
)
def test_merge_is_shallow_except_for_variables(
    app_env: dict[str, Any], own_env: dict[str, Any] | None, merged: dict[str, Any]
) -> None:
    assert runtime_env.merge(app_env, own_env) == merged


def test_an_empty_env_vars_means_nothing() -> None:
    first = runtime_env.fingerprint({"working_dir": "w", "env_vars": {}})
    assert first == runtime_env.fingerprint({"env_vars": None, "working_dir": "w"})
    assert first != runtime_env.fingerprint({"working_dir": "w", "env_vars": {"A": "1"}})


@pytest.mark.parametrize("wrong", [1.5, True, {}, ["x"]])
def test_modules_that_are_no_text_are_refused_where_they_stand(wrong: object) -> None:
    env = runtime_env.normalised({"py_modules": ["local:///a", None, wrong]})
    assert env["py_modules"] == ["file:///a", wrong]
    assert [loc for loc, _ in runtime_env.faults(env)] == [("py_modules", 1)]


def test_local_uris_and_their_paths() -> None:
    env = {"working_dir": "file:///srv/my%20app", "py_modules": ["https://h/a.zip", "/srv/x.zip", None]}
    assert [runtime_env.local_path(uri) for uri in runtime_env.local_uris(env)] == ["/srv/my app", "/srv/x.zip"]
    assert runtime_env.is_local_directory("/srv/app")
    assert not runtime_env.is_local_directory("file:///srv/x.zip")
    assert not runtime_env.is_local_directory("https://h/app")
