"""Which route of its application answered a noted request: found when the journal settles, off the way of requests."""

from collections.abc import Set
from typing import Any

from servd.calls.routes.patterns import RoutePatterns
from servd.calls.routes.table import decoded_path
from servd.observability.access_log import Labels
from servd.observability.journal import Note

_MOST_REMEMBERED = 4096
_LONGEST_REMEMBERED = 256

_Asked = tuple[Labels, str, bytes]


class NotedRoutes:
    """The routes of the applications that replicas have told of.

    Args:
        root_path: before the prefixes of all applications, "" or without a slash at its end.
    """

    def __init__(self, root_path: str) -> None:
        self._root_path = root_path.rstrip("/")
        self._patterns: dict[str, RoutePatterns] = {}
        self._remembered: dict[_Asked, Labels] = {}
        self._labels: dict[Labels, Labels] = {}

    def __repr__(self) -> str:
        return f"NotedRoutes({self._patterns})"

    def learn(self, deployment: str, described: tuple[Any, ...]) -> None:
        """A replica has told its application's routes. deployment: full name."""
        known = self._patterns.get(deployment)
        if known is None or known.described != described:
            self._patterns[deployment] = RoutePatterns(described)
            self._remembered.clear()
            self._labels.clear()

    def forget_all_but(self, deployments: Set[str]) -> None:
        """Applications that are gone need no routes."""
        self._patterns = {name: known for name, known in self._patterns.items() if name in deployments}

    def read(self, batch: list[Note]) -> list[Note]:
        """The notes of a batch, with the patterns of the routes that answered."""
        patterns, remembered = self._patterns, self._remembered
        if not patterns:
            return batch
        found = []
        for note in batch:
            labels, method, path = note[0], note[1], note[6]
            if labels[2] not in patterns or type(note[2]) is not int:
                found.append(note)
                continue
            asked = (labels, method, path)
            found.append((remembered.get(asked) or self._find(asked), *note[1:]))
        return found

    def _find(self, asked: _Asked) -> Labels:
        labels, method, path = asked
        prefix, app, deployment, _ = labels
        before = len(self._root_path) + (0 if prefix == "/" else len(prefix))
        pattern = self._patterns[deployment].whole(prefix, method, decoded_path(path)[before:])
        worded: Labels = (prefix, app, deployment, pattern)
        # one object for each, so that who compares them needs no second look
        worded = self._labels.setdefault(worded, worded)
        if len(path) <= _LONGEST_REMEMBERED:
            if len(self._remembered) >= _MOST_REMEMBERED:
                # clients choose what they ask for
                self._remembered.clear()
            self._remembered[asked] = worded
        return worded
