"""TLS of the port for gRPC: the data port's certificate, and who vouches for clients."""

import logging
import os
from pathlib import Path
from typing import Any

import grpc

logger = logging.getLogger(__name__)


class GrpcCertificate:
    """A certificate that follows its files: a renewed one is used for the connections after it.

    Args:
        chain, key: paths of PEM files.
        client_ca: path of the certificates that vouch for clients, each of which needs one then; "" = none does.
    """

    def __init__(self, chain: str, key: str, client_ca: str = "") -> None:
        self._chain, self._key, self._client_ca = chain, key, client_ca
        self._seen = self._stamps()

    def credentials(self) -> Any:
        """What a server takes.

        Raises:
            OSError: a file cannot be read.
        """
        return grpc.dynamic_ssl_server_credentials(self._read(), self._renewed, bool(self._client_ca))

    def _renewed(self) -> Any:
        """Asked at each handshake, on a thread of gRPC's; None = the one before."""
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            found = self._read()
        except OSError as error:
            logger.error("certificate_not_renewed reason=%s", error)
            return None
        logger.info("certificate_renewed file=%s", self._chain)
        return found

    def _read(self) -> Any:
        pair = (Path(self._key).read_bytes(), Path(self._chain).read_bytes())
        if b"ENCRYPTED" in pair[0]:
            raise OSError(f"the key {self._key} has a passphrase, which gRPC's library does not take")
        roots = Path(self._client_ca).read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def _stamps(self) -> list[int]:
        stamps = []
        for path in filter(None, (self._chain, self._key, self._client_ca)):
            try:
                stamps.append(os.stat(path).st_mtime_ns)
            except OSError:
                stamps.append(0)
        return stamps
