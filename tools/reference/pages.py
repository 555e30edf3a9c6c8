"""Which pages there are, and what makes each."""

from collections.abc import Callable

from tools.reference.command_line import command_line
from tools.reference.config_file import config_file
from tools.reference.metrics import metrics
from tools.reference.python_api import python_api
from tools.reference.rest_api import rest_api

PAGES: dict[str, Callable[[], str]] = {
    "python.md": python_api,
    "cli.md": command_line,
    "rest.md": rest_api,
    "config.md": config_file,
    "metrics.md": metrics,
}
