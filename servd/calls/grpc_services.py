"""The services of gRPC that servd itself has: health, Ray Serve's, reflection. Their names, and their messages as bytes.

Source: grpc.io, "Health checking" and "Reflection"; Ray Serve, serve.proto.
"""

from collections.abc import Iterable
from enum import IntEnum

from servd.exceptions import ProtocolError
from servd.wire.grpc.protobuf import bytes_field, fields, number_field

HEALTH = "grpc.health.v1.Health"
RAY_SERVE = "ray.serve.RayServeAPIService"
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
REFLECT = f"/{REFLECTIONS[0]}/ServerReflectionInfo"
"""What a replica is asked, whichever version the client speaks: their messages are the same."""

_LIST_SERVICES = 7


class Health(IntEnum):
    """`grpc.health.v1.HealthCheckResponse.ServingStatus`."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def service_asked(request: bytes) -> str:
    """The service that a `HealthCheckRequest` names, "" for the server as a whole.

    Raises:
        ProtocolError: no such message.
    """
    named = [value for number, value in fields(request) if number == 1 and isinstance(value, bytes)]
    return named[-1].decode(errors="replace") if named else ""


def health_answer(status: Health) -> bytes:
    """A `HealthCheckResponse`."""
    return number_field(1, status)


def healthz_answer(message: str) -> bytes:
    """A `HealthzResponse` of Ray Serve."""
    return bytes_field(1, message)


def applications_answer(names: Iterable[str]) -> bytes:
    """A `ListApplicationsResponse` of Ray Serve."""
    return b"".join(bytes_field(1, name) for name in names)


def asks_for_services(request: bytes) -> bool:
    """Whether a `ServerReflectionRequest` asks which services there are."""
    try:
        return any(number == _LIST_SERVICES for number, _ in fields(request))
    except ProtocolError:
        # who has the files answers it, with an error
        return False


def services_answer(request: bytes, names: Iterable[str]) -> bytes:
    """The `ServerReflectionResponse` with these services."""
    listed = b"".join(bytes_field(1, bytes_field(1, name)) for name in names)
    return bytes_field(2, request) + bytes_field(6, listed)


def files_answer(request: bytes, files: Iterable[bytes]) -> bytes:
    """The `ServerReflectionResponse` with these `FileDescriptorProto`s."""
    return bytes_field(2, request) + bytes_field(4, b"".join(bytes_field(1, file) for file in files))


def extensions_answer(request: bytes, base: str, numbers: Iterable[int]) -> bytes:
    """The `ServerReflectionResponse` with the numbers of a type's extensions."""
    listed = b"".join(number_field(2, number) for number in numbers)
    return bytes_field(2, request) + bytes_field(5, bytes_field(1, base) + listed)


def error_answer(request: bytes, code: int, message: str) -> bytes:
    """The `ServerReflectionResponse` that says why there is none."""
    return bytes_field(2, request) + bytes_field(7, number_field(1, code) + bytes_field(2, message))
