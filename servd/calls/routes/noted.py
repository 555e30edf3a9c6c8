"""Which route of its application answered a noted request: found when the journal settles, off the way of requests."""

from collections.abc import Set
from typing import Any

from servd.calls.routes.patterns import RoutePatterns
from servd.calls.routes.table import decoded_path
from servd.observability.access_log import Labels
from servd.observability.journal import Columns, columns_of
from servd.observability.noted_lines import all_same

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

    def read(self, noted: list[Any]) -> Columns:
        """The journal's notes, with the patterns of the routes that answered."""
        columns = columns_of(noted)
        labels, methods, statuses, paths = columns[0], columns[1], columns[2], columns[6]
        if not self._patterns or not labels:
            return columns
        if all_same(labels) and all_same(methods) and all_same(paths) and set(map(type, statuses)) == {int}:
            columns[0] = [self._worded(labels[0], methods[0], statuses[0], paths[0])] * len(labels)
        else:
            columns[0] = list(map(self._worded, labels, methods, statuses, paths))
        return columns

    def _worded(self, labels: Labels, method: str, status: int | str, path: bytes) -> Labels:
        if labels[2] not in self._patterns or type(status) is not int:
            return labels
        asked = (labels, method, path)
        return self._remembered.get(asked) or self._find(asked)

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
