"""Documents from disk: places of faults, bounds, relative paths, the YAML that is printed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from servd.documents.files import dump_yaml, is_document_path, load_document, parse_document, resolve_paths
from servd.exceptions import ConfigError
from servd.schema import parse_v2


def bomb() -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a: 1\na: 2", "2:1", "duplicate key 'a', first seen in line 1 column 1"),
        ("x:\n  1: a\n  '1': b", "3:3", "duplicate key '1'"),
        ("a: [1, 2", "1:9", ""),
        ("a: b: c", "1:5", "mapping values"),
        ("a: &x [*x]", "1:4", "refers to itself"),
        ("a: *nobody", "1:4", "undefined alias"),
        ("a: .inf", "1:4", "JSON number"),
        ("a: !!python/name:os.system x", "1:4", "tag"),
        ("a: !!binary aGk=", "1:4", "tag"),
        ("? [1]\n: 2", "1:3", "a key must be a plain value"),
        ("", "1:1", "empty"),
        ("a: 1\n--- \nb: 2", "2:1", "another document"),
        ("a: \x07", "1:4", "special characters"),
        ('a: "\\ud800"', "1:4", "surrogate"),
        (bomb(), "", "200000 values"),
        ("[" * 1000, "", "nested"),
    ],
)
def test_faults_have_line_and_column(text: str, place: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_document(text.encode(), "f.yaml")
    assert str(error.value).startswith(f"f.yaml:{place}")
    assert reason in str(error.value)


def test_bytes_that_are_no_text_have_a_place() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:2:4: not UTF-8"):
        parse_document(b"a: 1\nb: \xff", "f.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, true, null], "b": "\\ud83c\\udf4e"}', {"a": [1, 2.5, True, None], "b": "\U0001f34e"}),
        ("a: 2023-01-01", {"a": "2023-01-01"}),
        ("1: x\ntrue: y", {"1": "x", "true": "y"}),
        ("base: &b {x: 1}\nc:\n  <<: *b\n  y: 2", {"base": {"x": 1}, "c": {"x": 1, "y": 2}}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_values_are_those_of_json(text: str, value: Any) -> None:
    assert parse_document(text.encode(), "f").value == value


def test_schema_faults_have_line_and_column() -> None:
    text = (
        "applications:\n- name: a\n  import_path: m:a\n  deployments:\n  - name: D\n    num_replicas: 0\ncolour: red\n"
    )
    file = parse_document(text.encode(), "f.yaml")
    with pytest.raises(ConfigError) as error:
        parse_v2(file.value, file.place)
    assert "f.yaml:6:5: applications.0.deployments.0.num_replicas: " in str(error.value)
    assert "f.yaml:7:1: colour: " in str(error.value)


def test_schema_faults_stand_in_the_order_of_the_lines() -> None:
    text = "applications:\n- name: a\n  rout_prefix: /a\n  import_path: m:a\n  deployments:\n  - name: D\n    num_replicas: x\n"
    file = parse_document(text.encode(), "f.yaml")
    with pytest.raises(ConfigError) as error:
        parse_v2(file.value, file.place)
    assert [line.split(":")[1] for line in str(error.value).splitlines()[1:]] == ["3", "7"]


def test_code_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"such as hello:app"):
        load_document(str(tmp_path / "hello.py"))


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file"):
        load_document(str(tmp_path / "nothing.yaml"))
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (8 * 1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_document(str(huge))


def test_relative_paths_are_resolved_against_the_folder_everywhere() -> None:
    document = {
        "runtime_env": {"working_dir": "app"},
        "applications": [
            {
                "runtime_env": {"working_dir": "../x", "py_modules": ["a.zip", "https://h/b.zip", "/c", None]},
                "deployments": [{"ray_actor_options": {"runtime_env": {"working_dir": "."}}}, {"name": "D"}],
            }
        ],
    }
    resolved = resolve_paths(document, "/srv/conf")
    assert resolved["runtime_env"]["working_dir"] == "/srv/conf/app"
    app = resolved["applications"][0]
    assert app["runtime_env"]["working_dir"] == "/srv/x"
    assert app["runtime_env"]["py_modules"] == ["/srv/conf/a.zip", "https://h/b.zip", "/c", None]
    assert app["deployments"][0]["ray_actor_options"]["runtime_env"]["working_dir"] == "/srv/conf"
    assert document["runtime_env"]["working_dir"] == "app"  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("argument", "is_file"),
    [("a.yaml", True), ("a.yml", True), ("a.json", True), ("x/y", True), ("m:a", False), ("m.a", False)],
)
def test_files_and_import_paths_are_told_apart(argument: str, is_file: bool) -> None:
    assert is_document_path(argument) is is_file


def test_printed_yaml_is_block_style_and_reads_back() -> None:
    document = {"name": "a", "message": "line 1\n  line 2\n", "empty": "", "env": {}, "list": [{"x": 1, "y": "ü"}]}
    text = dump_yaml(document)
    assert yaml.safe_load(text) == document
    assert "message: |" in text
    assert text.splitlines()[0] == "name: a"
    assert not text.endswith("\n")
    assert dump_yaml({"import_path": "", "runtime_env": {}, "deployments": []}) == (
        "import_path: ''\nruntime_env: {}\ndeployments: []"
    )


RAY_SERVICE = """\
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: fruit
spec:
  serveConfigV2: |
    # the config of Serve
    applications:
      - name: fruit
        import_path: fruit:app
        colour: green
  rayClusterConfig:
    rayVersion: "2.60.0"
"""


def test_a_ray_service_of_kuberay_is_the_config_in_it(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(RAY_SERVICE)
    found = load_document(str(file))
    assert found.value == {"applications": [{"name": "fruit", "import_path": "fruit:app", "colour": "green"}]}
    line = RAY_SERVICE.splitlines().index("        colour: green") + 1
    assert found.place(("applications", 0, "colour")) == f"{file}:{line}:9"
    with pytest.raises(ConfigError, match=rf"service\.yaml:{line}:9: applications\.0\.colour: unknown key"):
        parse_v2(found.value, found.place)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # brought in by a merge key
        ("kind: RayService\nx: &x\n  serveConfigV2: |\n    applications: []\nspec:\n  <<: *x\n", 4),
        ("x: &x\n  kind: RayService\n  spec:\n    serveConfigV2: |\n      applications: []\n<<: *x\n", 5),
        # and the other one stands there itself
        (
            "kind: RayService\nx: &x\n  serveConfigV2: |\n    n: 1\n"
            "spec:\n  <<: *x\n  serveConfigV2: |\n\n      applications: []\n",
            9,
        ),
    ],
)
def test_a_ray_service_with_merge_keys(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    found = load_document(str(tmp_path / "s.yaml"))
    assert found.value == {"applications": []}
    assert found.place(("applications",)).startswith(f"{tmp_path / 's.yaml'}:{line}:")


def test_a_merge_key_gives_way_to_what_stands_there_itself() -> None:
    found = parse_document(b"a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n", "f")
    assert found.value["b"] == {"x": 2}
    assert found.place(("b", "x")) == "f:4:3"


def test_a_ray_service_with_its_config_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "service.json"
    file.write_text('{"kind": "RayService", "spec": {"serveConfigV2": "applications: []"}}')
    found = load_document(str(file))
    assert found.value == {"applications": []}
    assert found.place(()) == f"{file}: spec.serveConfigV2:1:1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind: RayService", "spec.serveConfigV2 of a RayService"),
        ("kind: RayService\nspec: {serveConfigV2: {applications: []}}", "must be the text of a Serve config"),
        ("kind: RayService\nspec:\n  serveConfigV2: 'a: [1'", "serveConfigV2:1:"),
        ("kind: RayService\nspec:\n  serveConfigV2: ''", "the document is empty"),
    ],
)
def test_a_ray_service_without_a_config_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_document(str(tmp_path / "s.yaml"))
