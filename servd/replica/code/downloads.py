"""Fetch a file over https, or over http from this host: bounded in size, redirects and time, whatever the server does."""

import http.client
import io
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

from servd.documents import runtime_env
from servd.exceptions import DeployError

MAX_ARCHIVE_BYTES = 4 * 1024**3
MAX_REDIRECTS = 5
_STALL_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1024 * 1024

TimeLeft = Callable[[], float]
"""Seconds until the fetch must be over."""


def fetch(uri: str, path: str, time_left: TimeLeft) -> None:
    """Write what is behind `uri` to the new file `path`.

    Args:
        time_left: for everything together, redirects and headers included.

    Raises:
        DeployError: too large, too slow, or broken off.
        OSError, HTTPException, ValueError: it cannot be fetched, and why.
    """
    try:
        _fetch(uri, path, time_left)
    except (OSError, http.client.HTTPException) as error:
        if time_left() > 0:
            raise
        raise _too_slow() from error


def _fetch(uri: str, path: str, time_left: TimeLeft) -> None:
    with _opener(uri, time_left).open(uri, timeout=_patience(time_left)) as answer, open(path, "wb") as file:
        received = 0
        # one read of the socket at a time: a server that drips must meet the deadline
        while chunk := answer.read1(_CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_ARCHIVE_BYTES:
                raise DeployError(f"is larger than {MAX_ARCHIVE_BYTES} bytes")
            if time_left() <= 0:
                raise _too_slow()
            file.write(chunk)
        declared = answer.headers.get("Content-Length")
        if declared is not None and declared.isdigit() and int(declared) != received:
            raise DeployError(f"the transfer broke off after {received} of {declared} bytes")


def _too_slow() -> DeployError:
    return DeployError("fetching took longer than setup_timeout_seconds allows")


def _patience(time_left: TimeLeft) -> float:
    """How long one wait on the socket may last, seconds."""
    return max(0.001, min(_STALL_TIMEOUT_S, time_left()))


class _Answer(http.client.HTTPResponse):
    """An answer whose head must come in time too: http.client bounds each wait only, and a line may drip."""

    def __init__(self, sock: socket.socket, *arguments: Any, time_left: TimeLeft, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_Impatient(raw, sock, time_left))


class _Impatient(io.RawIOBase):
    """The bytes of a socket, each wait no longer than the time that is left."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, time_left: TimeLeft) -> None:
        self._raw, self._sock, self._time_left = raw, sock, time_left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._time_left() <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(_patience(self._time_left))
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Http(urllib.request.HTTPHandler):
    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__()
        self._time_left = time_left

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_connected, http.client.HTTPConnection, self._time_left), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__()
        self._time_left = time_left

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_connected, http.client.HTTPSConnection, self._time_left), req)


def _connected(
    kind: type[http.client.HTTPConnection], time_left: TimeLeft, host: str, **options: Any
) -> http.client.HTTPConnection:
    connection = kind(host, **{**options, "timeout": _patience(time_left)})
    connection.response_class = partial(_Answer, time_left=time_left)  # type: ignore[assignment]
    return connection


def _opener(uri: str, time_left: TimeLeft) -> urllib.request.OpenerDirector:
    is_loopback = urlsplit(uri).scheme == "http"
    director = urllib.request.OpenerDirector()
    # only what is needed: the default opener would follow redirects to ftp: as well
    handlers: tuple[urllib.request.BaseHandler, ...] = (
        urllib.request.ProxyHandler({} if is_loopback else None),
        _Http(time_left),
        _Https(time_left),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(is_loopback),
    )
    for handler in handlers:
        director.add_handler(handler)
    return director


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    max_repeats = MAX_REDIRECTS

    def __init__(self, loopback_allowed: bool) -> None:
        self._loopback_allowed = loopback_allowed

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        parts = urlsplit(newurl)
        if parts.scheme != "https" and not (
            self._loopback_allowed and parts.scheme == "http" and runtime_env.is_loopback(parts.hostname or "")
        ):
            fp.close()
            raise urllib.error.URLError(f"redirected to {newurl}, which is not https:")
        # the base class would read all of its body, however long
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)
