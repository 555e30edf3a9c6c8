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
        query: `dialect=today` in it asks for what today's Ray Serve says: routes by application, and 503 while there is none.
    """
    path = table.inner_path(decoded_path(raw_path))
    if path is not None and is_probe(path):
        is_today = parse_qs(query).get(b"dialect") == [b"today"]
        routes = table.as_document(by_application=is_today)
        if is_today and not routes:
            return 503, TEXT, b"no application has a route yet"
        if path == HEALTH_PATH:
            return 200, b"content-type: text/plain\r\n", b"success"
        return 200, b"content-type: application/json\r\n", json.dumps(routes, separators=(",", ":")).encode()
    shown = decoded_path(raw_path)
    text = f"Path '{shown}' not found. Please ping http://.../-/routes for route table."
    return 404, TEXT, text.encode()


def is_probe(path: str) -> bool:
    """Whether the proxy itself answers this path (root path already removed)."""
    return path in (HEALTH_PATH, ROUTES_PATH)
