"""The files of the page as they are sent, and the headers that keep a browser from doing anything else with them."""

import os
import zlib
from functools import cache

from servd.ground.edition import stamp
from servd.ground.package import PACKAGE_DIR
from servd.ground.quick_dataclass import dataclass

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        # nothing in the page may become markup by accident
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # without any, a form of the page would not say where it comes from
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of everything that belongs to the page."""

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
NAMES = tuple(_TYPES)
"""What `index.html` and `login.html` refer to."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file. tag: another one for another content."""

    content: bytes
    media_type: str
    tag: str


@cache
def page_file(name: str) -> PageFile:
    """One of `NAMES`.

    Raises:
        OSError: it cannot be read.
    """
    content = _content(name)
    return PageFile(content, _TYPES[name], f'"{zlib.crc32(content):08x}-{len(content)}"')


@cache
def template(name: str) -> str:
    """`index.html` or `login.html`, with the places still empty.

    Raises:
        OSError: it cannot be read.
    """
    return _content(name).decode()


def _content(name: str) -> bytes:
    try:
        return _read(os.path.join(PACKAGE_DIR, "page", name))
    except FileNotFoundError:
        # a copy that a servd of before the page has made, to become this one, holds modules alone
        return _read(os.path.join(stamp().home, "page", name))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
