"""TLS of the listening ports, from certificate and key files."""

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable

from servd.exceptions import StateError

HTTP2, HTTP1 = "h2", "http/1.1"

logger = logging.getLogger(__name__)


def server_context(
    certificate: str, key: str, option: str, protocols: tuple[str, ...] = (HTTP1,), passphrase: str | None = None
) -> ssl.SSLContext:
    """What a listening port needs to speak TLS 1.2 and later.

    Args:
        certificate: PEM file with the certificate and its chain.
        key: PEM file with its private key.
        option: begin of the two options' names, for errors, e.g. "--admin-tls".
        protocols: offered in ALPN, best first.
        passphrase: of the key; None = it has none.

    Raises:
        StateError: a file cannot be used; names the option.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    load(context, certificate, key, option, passphrase)
    return context


def load(context: ssl.SSLContext, certificate: str, key: str, option: str, passphrase: str | None = None) -> None:
    """Read the files (again): connections from now on use what they hold.

    Raises:
        StateError: as `server_context`; the context goes on with what it had.
    """
    try:
        # a first try beside the context: a half-loaded pair must not take a running port down
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=answer_of(passphrase))
        context.load_cert_chain(certificate, key, password=answer_of(passphrase))
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else str(error)
        raise StateError(f"cannot use {option}-cert {certificate} with {option}-key {key}: {reason}") from error


def answer_of(passphrase: str | None, asked: list[bool] | None = None) -> Callable[[], str]:
    """What OpenSSL asks for a passphrase: by itself it would ask the terminal.

    Args:
        asked: grows where it asks.
    """

    def answer() -> str:
        if asked is not None:
            asked.append(True)
        if passphrase is None:
            raise ValueError("the key has a passphrase; give one without")
        return passphrase

    return answer


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

    Args:
        option: begin of the two options' names, for errors.
        client_ca: PEM file of what vouches for clients, each of which needs a certificate then; "" = none does.
        passphrase: asked for what opens the key, each time that it is read; may raise StateError.
        passphrases: the file where that comes from; "" = nowhere.

    Attributes:
        context: what the port speaks TLS with.

    Raises:
        StateError: a file cannot be used.
    """

    def __init__(
        self,
        certificate: str,
        key: str,
        option: str,
        client_ca: str = "",
        passphrase: Callable[[], str | None] = lambda: None,
        passphrases: str = "",
    ) -> None:
        self._files = (certificate, key)
        self._passphrases = passphrases
        self._client_ca = client_ca
        self._option = option
        self._passphrase = passphrase
        self._in_force = self._seen = self._stamps()
        self.context = self._made()

    def refresh(self) -> bool:
        """Look at the files; what cannot be used leaves the old ones in force, with a log line.

        Returns:
            Whether `context` is another now: servers that were made with the one before have to be made again.
        """
        seen = self._stamps()
        is_news, self._seen = seen != self._seen, seen
        if seen == self._in_force:
            return False
        has_other_clients = seen[1] != self._in_force[1]
        try:
            if has_other_clients:
                # one context forgets nobody who ever vouched for clients
                self.context = self._made()
            else:
                load(self.context, *self._files, self._option, self._passphrase())
        except StateError as error:
            # tried again at every look: what was short may have been something else than the files
            if is_news:
                logger.error("certificate_not_renewed reason=%s", error)
            return False
        self._in_force = seen
        logger.info("certificate_renewed file=%s", self._files[0])
        return has_other_clients

    def _made(self) -> ssl.SSLContext:
        context = server_context(*self._files, self._option, (HTTP2, HTTP1), self._passphrase())
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ssl.SSLError) as error:
                raise StateError(f"cannot use {self._client_ca} to check clients: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _stamps(self) -> tuple[list[int], int]:
        """What changes with the pair or with what opens it, and with who vouches for clients."""
        return [_stamp(path) for path in (*self._files, self._passphrases)], _stamp(self._client_ca)


def _stamp(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


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
