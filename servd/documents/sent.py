"""A V2 document as it was sent, from what the goal keeps of it."""

from collections.abc import Iterable
from dataclasses import asdict, field
from typing import Any, Protocol

from servd.ground.quick_dataclass import dataclass

_GRPC_OPTIONS = {
    "port": "grpc_port",
    "grpc_servicer_functions": "grpc_servicers",
    "request_timeout_s": "grpc_request_timeout_s",
    "enable_reflection": "grpc_reflection",
}
_LIFTED_BY_NULL = frozenset(
    {
        "request_timeout_s",
        "grpc_request_timeout_s",
        "keep_alive_timeout_s",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_ca_certs",
    }
)
"""Of an `HttpWish`: 0 or "" there is a `null` in the document."""


@dataclass(frozen=True, slots=True)
class HttpWish:
    """Options of HTTP and gRPC that a document sent; None = not sent, so it never conflicts. A limit or port of 0 is none, and
    so is a path of "". ssl_keyfile_password: on its way only, no goal holds it; "" = forget the one that is kept.
    """

    host: str | None = None
    port: int | None = None
    root_path: str | None = None
    location: str | None = None
    request_timeout_s: float | None = None
    grpc_port: int | None = None
    grpc_servicers: tuple[str, ...] | None = None
    grpc_request_timeout_s: float | None = None
    grpc_reflection: bool | None = None
    keep_alive_timeout_s: float | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)

    @property
    def kept(self) -> dict[str, Any]:
        """What was sent, but for what no goal holds."""
        return {
            key: value for key, value in asdict(self).items() if value is not None and key != "ssl_keyfile_password"
        }

    @property
    def names_tls(self) -> bool:
        """Whether anything of TLS was sent."""
        return any(
            sent is not None
            for sent in (self.ssl_certfile, self.ssl_keyfile, self.ssl_ca_certs, self.ssl_keyfile_password)
        )


class TopLevel(Protocol):
    """What is kept of a document beside its applications."""

    @property
    def http(self) -> HttpWish:
        """Options of HTTP and gRPC."""
        ...

    @property
    def logging_config(self) -> dict[str, Any]:
        """{} for none."""
        ...

    @property
    def target_capacity(self) -> float | None:
        """Percent of every count; None = all."""
        ...


def top_level(of: TopLevel, applications: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The document, in the order of the contract; options that say nothing are left out."""
    sent = of.http.kept
    for key in _LIFTED_BY_NULL & sent.keys():
        sent[key] = sent[key] or None
    location = sent.pop("location", None)
    grpc = {name: sent.pop(key) for name, key in _GRPC_OPTIONS.items() if key in sent}
    found = {
        "proxy_location": location,
        "http_options": sent or None,
        "applications": list(applications),
        "logging_config": of.logging_config or None,
        "target_capacity": of.target_capacity,
        "grpc_options": grpc or None,
    }
    return {key: value for key, value in found.items() if value is not None}
