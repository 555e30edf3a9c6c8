"""Dictionaries whose values are also found by what they belong to."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")
_Group = TypeVar("_Group")


class GroupedDict(dict[str, _Value], Generic[_Value, _Group]):
    """Key -> value, and the values of each group, in the order in which they came.

    It is changed by `table[key] = value` and `table.pop(key, None)` alone. A key stays in its group.

    Args:
        group_of: what a value belongs to.
    """

    def __init__(self, group_of: Callable[[_Value], _Group]) -> None:
        super().__init__()
        self._group_of = group_of
        self._groups: dict[_Group, dict[str, _Value]] = {}

    def __setitem__(self, key: str, value: _Value) -> None:
        super().__setitem__(key, value)
        self._groups.setdefault(self._group_of(value), {})[key] = value

    def pop(self, key: str, default: Any = None) -> Any:
        """Forget one; gives its value, `default` if there is none."""
        value = super().pop(key, None)
        if value is None:
            return default
        group = self._group_of(value)
        siblings = self._groups[group]
        del siblings[key]
        if not siblings:
            del self._groups[group]
        return value

    def in_group(self, group: _Group) -> list[_Value]:
        """Its values, none where it has none."""
        return list(self._groups.get(group, {}).values())
