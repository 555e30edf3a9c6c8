"""Lists of requirements as pip reads them: lines, options, files that name files."""

import hashlib
import os
import re
from collections.abc import Sequence

from servd.exceptions import DeployError

_NESTED = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S.*)")
_FOLDERS = re.compile(r"-f\b|-e\b|--find-links\b|--editable\b")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_MAX_DEPTH = 20


def requirements(packages: str | Sequence[str], cwd: str) -> tuple[list[str], list[str]]:
    """The lines for pip, each once, in order; files of `-r` are put in their place.

    Args:
        packages: lines, or the path of a requirements file (relative to `cwd`).

    Returns:
        The lines, and the SHA-256 of every constraints file among them.

    Raises:
        DeployError: a file cannot be read.
    """
    # a list is a file in the current directory
    lines = [f"-r {packages}"] if isinstance(packages, str) else packages
    found = list(dict.fromkeys(_expanded(lines, cwd, cwd, 0)))
    constraints = [line.removeprefix("-c ") for line in found if line.startswith("-c /")]
    return found, [_digest(path) for path in constraints]


def names_paths(line: str) -> bool:
    """Whether the line leads to a relative path, which means something only in one directory."""
    if "://" in line:
        return False
    if _FOLDERS.match(line):
        return not line.split("=" if "=" in line else None, 1)[-1].strip().startswith("/")
    word = line.partition("@")[2].strip() or line.rpartition(" ")[2].rpartition("=")[2]
    if word.startswith("/"):
        return False
    return "/" in word or word in (".", "..") or word.endswith((".whl", ".zip", ".tar.gz"))


def _expanded(lines: Sequence[str], folder: str, cwd: str, depth: int) -> list[str]:
    found: list[str] = []
    for written in lines:
        line = _COMMENT.sub("", written).strip()
        if not line:
            continue
        nested = _NESTED.fullmatch(line)
        if nested is None:
            found.append(line)
            continue
        path = _VARIABLE.sub(lambda name: _value_of(name[1], cwd), nested[2].strip("\"'"))
        if "://" in path:
            found.append(line)
            continue
        path = os.path.normpath(os.path.join(folder, path))
        if nested[1] in ("-c", "--constraint"):
            found.append(f"-c {path}")
        else:
            found += _lines_of(path, cwd, depth + 1)
    return found


def _lines_of(path: str, cwd: str, depth: int) -> list[str]:
    if depth > _MAX_DEPTH:
        raise DeployError(f"pip: {path}: requirements files are nested deeper than {_MAX_DEPTH}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"pip: cannot read the requirements file {path}: {error}") from error
    return _expanded(re.sub(r"\s*\\\n\s*", " ", text).splitlines(), os.path.dirname(path), cwd, depth)


def _value_of(name: str, cwd: str) -> str:
    # what Ray calls the directory of the application
    return cwd if name == "RAY_RUNTIME_ENV_CREATE_WORKING_DIR" else os.environ.get(name, "${" + name + "}")


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DeployError(f"pip: cannot read the constraints file {path}: {error}") from error
