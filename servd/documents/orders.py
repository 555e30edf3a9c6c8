"""Bodies of servd's own endpoints under `/api/servd/v1/`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from servd.config import DeploymentMode, LoggingConfig, RoutePrefix
from servd.documents import runtime_env
from servd.documents.bounds import MAX_REPLICAS
from servd.documents.checked import Document, Fault
from servd.documents.control_plane import ApplicationDocument
from servd.documents.sent import HttpWish
from servd.schema import HTTPOptionsSchema, Port, check_import_path, gRPCOptionsSchema


class ApplicationOrder(Document):
    """Body of `PUT /api/servd/v1/applications/{name}`: one application joins, the others stay.

    Either import_path or application_hash (of a shipped pickle) is given. host to proxy_location: options of
    the data plane, compared only if given.
    """

    import_path: str = ""
    application_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    args: dict[str, Any] = Field(default_factory=dict)
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    route_prefix: RoutePrefix | None = None
    python_path: str = ""
    driver_path: list[str] = Field(default_factory=list)
    logging_config: LoggingConfig | None = None
    host: str | None = None
    port: Port | None = None
    root_path: str | None = None
    proxy_location: DeploymentMode | None = None

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Exactly one source of the application; URIs as in documents."""
        faults: list[Fault] = []
        path = raw.get("import_path", "")
        if bool(path) == bool(raw.get("application_hash")):
            faults.append((("import_path",), "give either import_path or application_hash"))
        elif isinstance(path, str) and path:
            try:
                check_import_path(path)
            except ValueError as error:
                faults.append((("import_path",), str(error)))
        env = raw.get("runtime_env")
        if isinstance(env, Mapping):
            faults += [(("runtime_env", *loc), reason) for loc, reason in runtime_env.uri_faults(env)]
            raw["runtime_env"] = runtime_env.normalised(env)
        return faults

    def to_application(self, name: str) -> ApplicationDocument:
        """The value that the control plane takes; it has no stored config."""
        log = self.logging_config
        return ApplicationDocument(
            name=name,
            import_path=self.import_path,
            args=self.args,
            runtime_env=self.runtime_env,
            route_prefix=self.route_prefix,
            route_prefix_given="route_prefix" in self.model_fields_set,
            application_hash=self.application_hash,
            driver_path=tuple(self.driver_path),
            python_path=self.python_path,
            logging_config=log.model_dump(mode="json", exclude_unset=True) if log else None,
        )

    def http_wish(self) -> HttpWish:
        """Options of the data plane that were given."""
        location = str(self.proxy_location) if self.proxy_location else None
        return HttpWish(self.host, self.port, self.root_path, location)


class ScaleOrder(Document):
    """Body of `POST /api/v1/applications/{app}/deployments/{deployment}/scale`."""

    target_num_replicas: Annotated[int, Field(strict=True, ge=0, le=MAX_REPLICAS)]


class StartOrder(HTTPOptionsSchema):
    """Body of `POST /api/servd/v1/start`."""

    proxy_location: DeploymentMode | None = None
    grpc_options: gRPCOptionsSchema | None = None

    def wish(self) -> HttpWish:
        """Options of the data plane that were given."""
        http = self.http_wish(str(self.proxy_location) if self.proxy_location else None)
        return http if self.grpc_options is None else self.grpc_options.added_to(http)
