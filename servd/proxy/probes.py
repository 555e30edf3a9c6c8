"""Paths that the proxy answers itself."""

import json
from urllib.parse import parse_qs

from servd.calls.routes.table import RouteTable, decoded_path

HEALTH_PATH = "/-/healthz"
ROUTES_PATH = "/-/routes"
TEXT = b"content-type: text/plain; charset=utf-8\r\n"

Answer = tuple[int, bytes, bytes]
"""Status, header lines, body."""


def answer_unrouted(table: RouteTable, raw_path: bytes, query: bytes) -> Answer:
    """The answer to a request that no deployment gets.

    Args:
        raw_path: without the query.
        query: `dialect=today` in it asks for the routes as releases since 2.6 show them.
    """
    path = table.inner_path(decoded_path(raw_path))
    if path == HEALTH_PATH:
        return 200, b"content-type: text/plain\r\n", b"success"
    if path == ROUTES_PATH:
        is_today = parse_qs(query).get(b"dialect") == [b"today"]
        body = json.dumps(table.as_document(by_application=is_today), separators=(",", ":")).encode()
        return 200, b"content-type: application/json\r\n", body
    shown = decoded_path(raw_path)
    text = f"Path '{shown}' not found. Please ping http://.../-/routes for route table."
    return 404, TEXT, text.encode()


def is_probe(path: str) -> bool:
    """Whether the proxy itself answers this path (root path already removed)."""
    return path in (HEALTH_PATH, ROUTES_PATH)
