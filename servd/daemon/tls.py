"""TLS of the listening ports, from certificate and key files."""

import contextlib
import logging
import os
import socket
import ssl

from servd.exceptions import StateError

HTTP2, HTTP1 = "h2", "http/1.1"

logger = logging.getLogger(__name__)


def server_context(certificate: str, key: str, option: str, protocols: tuple[str, ...] = (HTTP1,)) -> ssl.SSLContext:
    """What a listening port needs to speak TLS 1.2 and later.

    Args:
        certificate: PEM file with the certificate and its chain.
        key: PEM file with its private key, without a passphrase.
        option: begin of the two options' names, for errors, e.g. "--admin-tls".
        protocols: offered in ALPN, best first.

    Raises:
        StateError: a file cannot be used; names the option.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    load(context, certificate, key, option)
    return context


def load(context: ssl.SSLContext, certificate: str, key: str, option: str) -> None:
    """Read the files (again): connections from now on use what they hold.

    Raises:
        StateError: as `server_context`; the context goes on with what it had.
    """
    try:
        # a first try beside the context: a half-loaded pair must not take a running port down
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_passphrase)
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else str(error)
        raise StateError(f"cannot use {option}-cert {certificate} with {option}-key {key}: {reason}") from error


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; give one without")


def check_pair(certificate: str | None, key: str | None, option: str) -> bool:
    """Whether TLS is asked for.

    Raises:
        StateError: one file of the two is missing, or they cannot be used.
    """
    if not certificate and not key:
        return False
    if not certificate or not key:
        raise StateError(f"{option}-cert and {option}-key belong together: give both")
    server_context(certificate, key, option)
    return True


class Certificate:
    """A port's certificate that follows its files: a renewed one is used for the connections after it.

    Raises:
        StateError: a file cannot be used.
    """

    def __init__(self, certificate: str, key: str, option: str) -> None:
        self._files = (certificate, key)
        self._option = option
        self._seen = self._stamps()
        self.context = server_context(certificate, key, option, (HTTP2, HTTP1))

    def refresh(self) -> None:
        """Look at the files; what cannot be used leaves the old ones in force, with a log line."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            load(self.context, *self._files, self._option)
        except StateError as error:
            logger.error("certificate_not_renewed reason=%s", error)
        else:
            logger.info("certificate_renewed file=%s", self._files[0])

    def _stamps(self) -> list[int]:
        stamps = []
        for path in self._files:
            try:
                stamps.append(os.stat(path).st_mtime_ns)
            except OSError:
                stamps.append(0)
        return stamps


class PolledTls:
    """The server's side of a TLS connection, for a loop that polls: as a socket that does not block, the handshake included.

    Whatever cannot be done before more has come raises BlockingIOError; any other OSError is the end of it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._is_greeted = False

    def recv(self, size: int) -> bytes:
        """Bytes of the client, b"" at the end."""
        try:
            if not self._is_greeted:
                self._sock.do_handshake()
                self._is_greeted = True
            return self._sock.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error

    def send(self, data: bytes) -> int:
        """Send what there is room for."""
        return self._sock.send(data)

    def shutdown(self, how: int) -> None:
        """Say goodbye; what comes after that is read as it comes, and means nothing."""
        with contextlib.suppress(OSError):
            # the goodbye is sent; that of the other side is not waited for
            self._sock.unwrap()
        self._sock.shutdown(how)

    def fileno(self) -> int:
        """The number of its descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close at once."""
        self._sock.close()
