"""Which resource a path means: exact spelling, one name per open segment."""

from collections.abc import Callable, Iterator
from urllib.parse import unquote

from servd.rest.exchange import Resource

Maker = Callable[..., Resource]
"""Gives the resource behind the open segments of a path."""


class Routes:
    """Paths of the admin plane. A template is a path in which `{...}` stands for one segment, never empty.

    Any other spelling of a known path is unknown: %2F is no slash, and a slash at the end matters.
    """

    def __init__(self, templates: dict[str, Maker]) -> None:
        self._fixed = {path: maker() for path, maker in templates.items() if "{" not in path}
        self._open = [(path.split("/"), maker) for path, maker in templates.items() if "{" in path]

    def find(self, spelled: str) -> Resource | None:
        """The resource of a path as it was spelled in the request; None if there is none."""
        if spelled in self._fixed:
            return self._fixed[spelled]
        segments = spelled.split("/")
        for template, maker in self._open:
            names = list(_names(template, segments)) if len(template) == len(segments) else [None]
            if None not in names:
                return maker(*(unquote(name) for name in names if name is not None))
        return None


def _names(template: list[str], segments: list[str]) -> Iterator[str | None]:
    """Values of the open segments; None where a path does not fit."""
    for wanted, given in zip(template, segments, strict=True):
        if wanted.startswith("{"):
            yield given or None
        elif wanted != given:
            yield None
