"""What the control lines say of gRPC, beside `messages`."""

from servd.ground.quick_dataclass import dataclass

Authentication = tuple[str | None, tuple[tuple[str, tuple[bytes, ...]], ...]]
"""Of a client's connection: the key of who it is, and the pairs of gRPC's authentication context."""


@dataclass(frozen=True, slots=True)
class GrpcMethod:
    """A method of gRPC. name: `/package.Service/Method`. streams_in, streams_out: many requests, many answers. is_idempotent: its
    `idempotency_level` says that it may be repeated.
    """

    name: str
    streams_in: bool = False
    streams_out: bool = False
    is_idempotent: bool = False


@dataclass(frozen=True, slots=True)
class GrpcRoute:
    """application -> full name of the ingress deployment that serves its calls of gRPC. request_timeout_s: None = no limit.
    reflects: tools may ask for its message types.
    """

    app: str
    deployment: str
    methods: tuple[GrpcMethod, ...]
    request_timeout_s: float | None = None
    reflects: bool = True
