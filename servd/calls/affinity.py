"""What a request says about where it belongs: the value of a header, or the text that a language model is asked about."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from servd.calls.routing_rules import Rule

LONGEST_JSON_BYTES = 256 * 1024
"""Bodies up to this size are read as JSON; of larger ones the first bytes are the text."""
LONGEST_TEXT = 16 * 1024
"""Characters of a text that are looked at."""
_NAMES = ("prompt", "messages", "input", "text")


def affinity_of_http(rule: Rule, headers: Iterable[tuple[bytes, bytes]], body: "bytes | bytearray | memoryview") -> str:
    """What the rule goes by, of an HTTP request.

    Args:
        headers: names in lower case.
        body: what of it is there already.
    """
    if rule.reads_text:
        return prompt_of_body(body)
    # clients and proxies write dashes and underscores for each other, as in Ray Serve
    wanted = rule.header.replace(b"_", b"-")
    return next((value.decode("latin-1") for name, value in headers if name.replace(b"_", b"-") == wanted), "")


def affinity_of_grpc(rule: Rule, metadata: Iterable[tuple[str, "str | bytes"]], message: bytes) -> str:
    """What the rule goes by, of a call of gRPC: the text is the beginning of its message, as bytes."""
    if rule.reads_text:
        return message[:LONGEST_TEXT].decode("latin-1")
    pairs = ((key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in metadata)
    return affinity_of_http(rule, pairs, b"")


def prompt_of_body(body: "bytes | bytearray | memoryview") -> str:
    """The prompt or the messages of a JSON body, or the beginning of any other one, as text."""
    if len(body) <= LONGEST_JSON_BYTES:
        try:
            found = prompt_of(json.loads(bytes(body)))
        except (ValueError, RecursionError):
            found = ""
        if found:
            return found
    return bytes(body[:LONGEST_TEXT]).decode("latin-1")


def prompt_of(value: Any) -> str:
    """The text in a value that a model is asked about: it, or its `prompt`, `messages`, `input` or `text`, key or attribute."""
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    for name in _NAMES:
        inner = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if isinstance(inner, str | list | tuple):
            return _joined(inner)[:LONGEST_TEXT]
    return ""


def prompt_of_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    """The first text among a handle call's arguments, "" for none."""
    return next(filter(None, map(_prompt_if_any, (*args, *kwargs.values()))), "")


def _prompt_if_any(argument: Any) -> str:
    try:
        return prompt_of(argument)
    except Exception:
        # attributes may be user code: a call must not fail since a router wanted to know of them
        return ""


def _joined(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        text = value.get("text")
        return text if isinstance(text, str) else _joined(value.get("content"))
    if not isinstance(value, list | tuple):
        return ""
    parts: list[str] = []
    left = LONGEST_TEXT
    for item in value:
        parts.append(_joined(item))
        left -= len(parts[-1])
        if left <= 0:
            break
    return "".join(parts)
