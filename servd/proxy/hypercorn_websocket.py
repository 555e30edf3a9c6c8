"""Hypercorn's WebSocket messages with a bound that holds."""

from collections.abc import Callable
from typing import Any

from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer


class MessageBuffer(WebsocketBuffer):
    """Puts a message together. The base class goes on to collect what is too large.

    Args:
        on_overflow: called once, when a message is larger than that.
    """

    def __init__(self, max_length: int, on_overflow: Callable[[], None]) -> None:
        super().__init__(max_length)
        self._on_overflow = on_overflow
        self._is_over = False

    def extend(self, event: Any) -> None:
        if self.length + len(event.data) > self.max_length and not self._is_over:
            self._is_over = True
            self.clear()
            self._on_overflow()
        if self._is_over:
            raise FrameTooLargeError
        super().extend(event)
