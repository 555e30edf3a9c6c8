"""What was worked out before, for as many keys as there is room for."""

from collections.abc import Callable, Sized
from typing import TypeVar

K = TypeVar("K", bound=Sized)
V = TypeVar("V")


class Remembered(dict[K, V]):
    """Gives the value of any key: the one that it has, else a new one.

    Args:
        make: the value of a key.
        most: entries; one more, and all begins anew.
        longest: a longer key is not kept, since clients choose it; 0 = all are.
    """

    def __init__(self, make: Callable[[K], V], *, most: int, longest: int = 0) -> None:
        super().__init__()
        self._make = make
        self._most = most
        self._longest = longest

    def __missing__(self, key: K) -> V:
        value = self._make(key)
        if not self._longest or len(key) <= self._longest:
            if len(self) >= self._most:
                self.clear()
            self[key] = value
        return value
