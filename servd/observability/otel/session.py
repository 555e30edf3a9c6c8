"""The session by which spans leave: what the library makes nothing of, in a collector's answers and in its own variables."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests

from servd.exceptions import ProtocolError, TransportError
from servd.wire.grpc.protobuf import fields

_OK, _REDIRECTS = 200, range(300, 400)
_LARGEST_ANSWER = 64 * 1024
_PARTIAL_SUCCESS, _REJECTED_SPANS, _ERROR_MESSAGE = 1, 1, 2
"""Fields of OTLP's ExportTraceServiceResponse, and of the message in it."""

Hear = Callable[[int, str], None]
"""Is told how many spans a collector has refused of those that it was sent, and why; or, with 0, what it warns of."""


class SpanSession(requests.Session):
    """Tells what a collector did not take, and takes no redirect for a success."""

    def __init__(self, hear: Hear) -> None:
        super().__init__()
        self._hear = hear
        self.hooks["response"].append(self._look)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """By itself requests takes the file of `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE` in place of the session's own."""
        own = self.verify if verify is None and self.verify is not True else verify
        return super().merge_environment_settings(url, proxies, stream, own, cert)

    def _look(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        if answer.status_code in _REDIRECTS:
            # the library follows none, and counts it as taken
            answer.close()
            location = urlsplit(answer.headers.get("location", ""))._replace(query="", fragment="").geturl()
            where = f": name the address {location}" if location else ""
            raise TransportError(f"{answer.status_code} {answer.reason}{where}")
        if answer.status_code == _OK and 0 < len(answer.content) <= _LARGEST_ANSWER:
            # a proxy in between may answer whatever it likes
            with suppress(ProtocolError, ValueError):
                self._look_into(answer.content)

    def _look_into(self, content: bytes) -> None:
        for number, partial in fields(content):
            if number == _PARTIAL_SUCCESS and isinstance(partial, bytes):
                said = dict(fields(partial))
                refused, why = said.get(_REJECTED_SPANS, 0), said.get(_ERROR_MESSAGE, b"")
                if isinstance(refused, int) and isinstance(why, bytes) and (refused or why):
                    self._hear(refused, why.decode(errors="replace"))
