"""What handlers say over a WebSocket, looked at before it leaves the replica: afterwards nobody could tell them. Pure."""

from typing import Any

_UNSAID = (1004, 1006)
_CODES = (range(1000, 1015), range(3000, 5000))
"""What a server may say in its farewell, but for those above; 1005 stands for none (RFC 6455, 7.4)."""


def content_of(message: dict[str, Any]) -> str | bytes:
    """The content of a `websocket.send`.

    Raises:
        TypeError: it has neither text nor bytes.
    """
    text, data = message.get("text"), message.get("bytes")
    if isinstance(text, str):
        return text
    if text is None and isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    given = type(data if text is None else text).__name__
    raise TypeError(f"a message of a WebSocket has text, a str, or bytes; got {given}")


def checked(message: dict[str, Any], is_open: bool) -> dict[str, Any]:
    """A message of a handler as it is sent on. is_open: the handshake is accepted, or refused.

    Raises:
        TypeError: as `content_of`.
        ValueError: a server may not say this code.
    """
    if message["type"] == "websocket.send":
        content = content_of(message)
        return {"type": "websocket.send", "text" if isinstance(content, str) else "bytes": content}
    if message["type"] == "websocket.close" and is_open:
        code = message.get("code", 1000)
        if code in _UNSAID or not any(code in known for known in _CODES):
            raise ValueError(f"a WebSocket cannot be closed with {code}")
    return message
