"""Lists of requirements: files in files, options, and which lines mean something only in their directory."""

from pathlib import Path

import pytest

from servd.exceptions import DeployError
from servd.replica.code.requirements import names_paths, requirements


def test_files_are_put_in_place_of_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "more")
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text("# all\na==1  # why\n\n-r more/deep.txt\n-c limits.txt\na==1\n--pre\n")
    (tmp_path / "more" / "deep.txt").write_text("b==2 \\\n    --hash=sha256:00\n--requirement=deeper.txt\n")
    (tmp_path / "more" / "deeper.txt").write_text("c @ https://host/c.whl#sha256=00\n")
    (tmp_path / "limits.txt").write_text("d<3\n")
    lines, digests = requirements("requirements.txt", str(tmp_path))
    assert lines == [
        "a==1",
        "b==2 --hash=sha256:00",
        "c @ https://host/c.whl#sha256=00",
        f"-c {tmp_path}/limits.txt",
        "--pre",
    ]
    assert len(digests) == 1
    given = ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/${FOLDER}/deep.txt", "-chttps://host/limits.txt"]
    assert requirements(given, str(tmp_path))[0] == [*lines[1:3], "-chttps://host/limits.txt"]
    (tmp_path / "limits.txt").write_text("d<4\n")
    assert requirements("requirements.txt", str(tmp_path))[1] != digests


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"requirements file .*/nothing.txt"):
        requirements(["-r nothing.txt"], str(tmp_path))
    with pytest.raises(DeployError, match=r"constraints file .*/nothing.txt"):
        requirements(["-c nothing.txt"], str(tmp_path))
    (tmp_path / "circle.txt").write_text("-r circle.txt")
    with pytest.raises(DeployError, match="nested"):
        requirements("circle.txt", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy", False),
        ("numpy>=2,<3; python_version < '3.12'", False),
        ("-i https://host/simple", False),
        ("/abs/a.whl", False),
        ("-e ./here", True),
        ("--find-links=wheels", True),
        ("-f /abs", False),
        ("here/a.whl", True),
        ("a.whl", True),
        (".", True),
        ("a @ ./a", True),
        ("a @ file:///a", False),
    ],
)
def test_lines_that_belong_to_a_directory(line: str, expected: bool) -> None:
    assert names_paths(line) is expected
