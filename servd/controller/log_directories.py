"""Whether the directories that documents want for log files can be written to."""

from collections.abc import Iterable

from servd.documents.control_plane import ApplicationDocument
from servd.exceptions import ConfigError
from servd.observability.logs import directory_trouble


def check_log_directories(documents: Iterable[ApplicationDocument]) -> None:
    """Make each `logs_dir` of the applications and their overrides.

    Raises:
        ConfigError: lists those in which no file can be written, and whose they are.
    """
    problems = []
    for document in documents:
        wanted = [(f"application {document.name!r}", document.logging_config)]
        wanted += [(f"deployment {one['name']!r}", one.get("logging_config")) for one in document.deployments]
        for whose, config in wanted:
            logs_dir = (config or {}).get("logs_dir")
            if logs_dir and (trouble := directory_trouble(logs_dir)):
                problems.append(f"logging_config.logs_dir of {whose}: the daemon {trouble}")
    if problems:
        raise ConfigError("\n".join(problems))
