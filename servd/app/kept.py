"""What a decorated method keeps for each instance or class: its queue, its models. Copies and pickles begin without."""

from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")
_ATTRIBUTE = "__servd_kept__"


class _Kept(dict[Any, Any]):
    """By decorated function: one of the same name in another class, or under another decorator, is another one."""

    def __init__(self, owner: Any = None) -> None:
        super().__init__()
        self.owner = owner

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


# instances without a dictionary of their own; they live as long as their replica
_slotted: dict[int, _Kept] = {}


def kept_for(owner: Any, key: Any, make: Callable[[], _T]) -> _T:
    """What is kept under `key`, which is compared by identity, for this very instance; made at the first call."""
    try:
        kept = owner.__dict__.get(_ATTRIBUTE)
    except AttributeError:
        kept = _slotted.get(id(owner))
    # a copy of an instance has the attribute of the original
    if kept is None or kept.owner is not owner:
        kept = _begun(owner)
    found: _T | None = kept.get(key)
    if found is None:
        found = kept[key] = make()
    return found


def _begun(owner: Any) -> _Kept:
    kept = _Kept(owner)
    if isinstance(owner, type):
        setattr(owner, _ATTRIBUTE, kept)
    elif hasattr(owner, "__dict__"):
        # past a `__setattr__` of the user
        owner.__dict__[_ATTRIBUTE] = kept
    else:
        _slotted[id(owner)] = kept
    return kept
