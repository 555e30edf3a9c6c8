"""The whole check of a config file, or of a Python file, for a Ray cluster. Reads files; imports none of them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from servd.commands.operations import valid_document
from servd.commands.verbs import CheckedDocument
from servd.documents import runtime_env
from servd.documents.files import DocumentFile, load_document
from servd.engines.ray.code import CodeFile, of_script, reachable
from servd.engines.ray.code_rules import Surroundings, code_findings
from servd.engines.ray.document_rules import (
    UPLOADED,
    DocumentRules,
    Way,
    applications,
    environments,
    is_uploaded,
    local_directories,
)
from servd.engines.ray.findings import Finding, Severity, in_order
from servd.engines.ray.packing import is_too_large


@dataclass(frozen=True)
class ReadFile:
    """A valid config file. file: as written, with places. checked: with absolute paths."""

    file: DocumentFile
    checked: CheckedDocument


def read(path: str) -> ReadFile:
    """A config file, checked as the daemon would check it.

    Raises:
        ConfigError: it is not valid for servd.
    """
    return ReadFile(load_document(path), valid_document(path))


def check_code(path: str) -> list[Finding]:
    """What a scan of a Python file, and of what it imports from beside it, shows.

    Raises:
        ConfigError: a file cannot be read, or is no Python.
    """
    return in_order(code_findings(of_script(path), Surroundings()))


def check_document(document: ReadFile, way: Way = UPLOADED) -> list[Finding]:
    """What a config file and the code that it names show.

    Raises:
        ConfigError: a file cannot be read, or is no Python.
    """
    value = document.checked.value
    large = way.uploads and {
        path
        for _, app in applications(value)
        for env in environments(app)
        for path in local_directories(env)
        if os.path.isdir(path) and is_too_large(path, env.get("excludes") or ())
    }
    code = {place: code_of(app) for place, app in applications(value)}
    servds = {app.get("name") or "default" for place, app in applications(value) if are_servds(code[place])}
    found = list(DocumentRules(document.file, value, large or frozenset(), way, servds).findings())
    for place, app in applications(value):
        found += _code(document, place, app, code[place], way)
    return in_order(found)


def code_of(app: Mapping[str, Any]) -> list[CodeFile]:
    """The files of an application of a valid document, as far as they are on this machine.

    Raises:
        ConfigError: one cannot be read, or is no Python.
    """
    env, import_path = app.get("runtime_env") or {}, app["import_path"]
    module = import_path.rpartition(":" if ":" in import_path else ".")[0]
    # without a directory it is where the daemon would look
    return reachable(module, [*local_directories(env), *_in_image(env)] or [os.getcwd()])


def are_servds(files: Iterable[CodeFile]) -> bool:
    """Whether the application of these files is written with `import servd`."""
    return any(file.is_servds for file in files)


def _code(
    document: ReadFile, place: tuple[str | int, ...], app: Mapping[str, Any], files: list[CodeFile], way: Way
) -> Iterator[Finding]:
    env, import_path = app.get("runtime_env") or {}, app["import_path"]
    if not files:
        line = int(document.file.place((*place, "import_path")).rsplit(":", 2)[1])
        what = f"the code of {import_path} is not on this machine, so nobody has looked at it"
        yield Finding(document.file.name, line, Severity.DIFFERS, what, "check its sources: `servd validate FILE.py`")
    entries = app.get("deployments") or ()
    with_cpus = {
        entry["name"] for entry in entries if (entry.get("ray_actor_options") or {}).get("num_cpus") is not None
    }
    around = Surroundings((app.get("name") or "default",), frozenset(with_cpus), way.uploads and is_uploaded(env))
    yield from code_findings(files, around)


def _in_image(env: Mapping[str, Any]) -> list[str]:
    """Directories that lie in an image, and perhaps here too."""
    found = (env.get("working_dir"), *(env.get("py_modules") or ()))
    return [
        runtime_env.local_path("file:" + uri.removeprefix("local:"))
        for uri in found
        if isinstance(uri, str) and uri.startswith("local:")
    ]
