"""`ray.serve.generated`: what clients of Ray Serve's own gRPC service import, without generated code."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any, ClassVar

from servd.calls.grpc_services import RAY_SERVE, applications_answer, healthz_answer
from servd.compat.absent_modules import refuse
from servd.wire.grpc.protobuf import fields


class Empty:
    """A message without fields."""

    def SerializeToString(self) -> bytes:
        """Its bytes."""
        return b""

    @classmethod
    def FromString(cls, data: bytes) -> "Empty":  # noqa: ARG003
        """The message behind the bytes."""
        return cls()


class ListApplicationsRequest(Empty):
    """Asks for the applications."""


class HealthzRequest(Empty):
    """Asks whether the proxy serves."""


class ListApplicationsResponse:
    """Names of the applications."""

    def __init__(self, application_names: Iterable[str] = ()) -> None:
        self.application_names = list(application_names)

    def __repr__(self) -> str:
        return f"ListApplicationsResponse({self.application_names})"

    def SerializeToString(self) -> bytes:
        """Its bytes."""
        return applications_answer(self.application_names)

    @classmethod
    def FromString(cls, data: bytes) -> "ListApplicationsResponse":
        """The message behind the bytes."""
        return cls(value.decode() for number, value in fields(data) if number == 1 and isinstance(value, bytes))


class HealthzResponse:
    """Says that the proxy serves."""

    def __init__(self, message: str = "") -> None:
        self.message = message

    def __repr__(self) -> str:
        return f"HealthzResponse({self.message!r})"

    def SerializeToString(self) -> bytes:
        """Its bytes."""
        return healthz_answer(self.message)

    @classmethod
    def FromString(cls, data: bytes) -> "HealthzResponse":
        """The message behind the bytes."""
        found = [value.decode() for number, value in fields(data) if number == 1 and isinstance(value, bytes)]
        return cls(found[-1] if found else "")


class RayServeAPIServiceStub:
    """Calls the service over a channel of `grpc`."""

    _METHODS: ClassVar[dict[str, tuple[type[Any], type[Any]]]] = {
        "ListApplications": (ListApplicationsRequest, ListApplicationsResponse),
        "Healthz": (HealthzRequest, HealthzResponse),
    }

    ListApplications: Any
    Healthz: Any

    def __init__(self, channel: Any) -> None:
        for name, (request, response) in self._METHODS.items():
            call = channel.unary_unary(
                f"/{RAY_SERVE}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            setattr(self, name, call)


def fill_messages(module: ModuleType) -> None:
    """Make a module `serve_pb2`."""
    _fill(module, ListApplicationsRequest, ListApplicationsResponse, HealthzRequest, HealthzResponse)


def fill_stubs(module: ModuleType) -> None:
    """Make a module `serve_pb2_grpc`."""
    _fill(module, RayServeAPIServiceStub)


def _fill(module: ModuleType, *kinds: type[Any]) -> None:
    names = ", ".join(kind.__name__ for kind in kinds)
    home = module.__name__

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        words = (
            f"servd's {home} has {names} for clients, and no {name}: generate the code of your own services "
            "from their .proto file, see docs/grpc.md"
        )
        refuse(words)

    module.__dict__.update({kind.__name__: kind for kind in kinds}, __getattr__=missing)
