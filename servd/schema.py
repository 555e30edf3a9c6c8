"""REST documents, V1 and V2: what a PUT may hold, its 2.5 form for storage, and the shapes of the answers."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from servd.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    DeploymentMode,
    DeploymentOptions,
    LoggingConfig,
    ProxyLocation,
    RayActorOptions,
    RequestRouterConfig,
    RoutePrefix,
    gRPCOptions,
)
from servd.documents import runtime_env
from servd.documents.answers import HTTPProxyDetails, ServeActorDetails, ServeStatusSchema
from servd.documents.autoscaling import take_out_default_policy
from servd.documents.bounds import AbsolutePath, Passphrase, Positive, Replicas
from servd.documents.checked import Document, Fault, Place, validated
from servd.documents.control_plane import ApplicationDocument, GoalDocument
from servd.documents.cross_checks import item_faults, repeated, scaler_faults, tls_faults
from servd.documents.details import ApplicationDetails, DeploymentDetails, ReplicaDetails, ServeInstanceDetails
from servd.documents.sent import HttpWish
from servd.documents.statuses import ApplicationOverview as ApplicationStatusOverview
from servd.documents.statuses import DeploymentOverview as DeploymentStatusOverview
from servd.documents.statuses import ServeStatus
from servd.exceptions import ConfigError
from servd.ground.absent import stand_in
from servd.ground.ids import ReplicaRank
from servd.ground.names import LONGEST_NAME, PATTERN, check_name
from servd.ground.states import ApplicationStanding as ApplicationStatus
from servd.ground.states import DeployMode, ProxyStatus

__all__ = [
    "ApplicationDetails",
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "DeploymentDetails",
    "DeploymentSchema",
    "DeploymentStatusOverview",
    "EncodingType",
    "HTTPOptionsSchema",
    "HTTPProxyDetails",
    "LoggingConfig",
    "ProxyLocation",
    "ProxyStatus",
    "RayActorOptionsSchema",
    "ReplicaDetails",
    "ReplicaRank",
    "RequestRouterConfig",
    "ServeActorDetails",
    "ServeApplicationSchema",
    "ServeDeploySchema",
    "ServeInstanceDetails",
    "ServeStatus",
    "ServeStatusSchema",
    "gRPCOptionsSchema",
]


class EncodingType(StrEnum):
    """How log records are written."""

    TEXT = "TEXT"
    JSON = "JSON"


EMPTY_CONFIG: dict[str, Any] = {"import_path": "", "runtime_env": {}, "deployments": []}
"""What GET V1 and `servd config` show where nothing is stored."""


def check_import_path(path: str) -> str:
    """The import path itself.

    Raises:
        ValueError: it is neither `module:attribute` nor `module.attribute`.
    """
    file, _, attribute = path.partition(":")
    if "/" in file or file.endswith(".py"):
        example = f"{file.rpartition('/')[2].removesuffix('.py')}:{attribute or 'app'}"
        raise ValueError(
            f"import_path {path!r} names a file: give the module, as in {example!r}, and its folder as working_dir "
            "of the runtime_env (`--app-dir` on the command line)"
        )
    if path.count(":") > 1:
        raise ValueError(f"import_path {path!r} holds more than one ':'")
    if ":" in path:
        if path.startswith(":") or path.endswith(":"):
            raise ValueError(f"import_path {path!r} must not begin or end with ':'")
    elif "." not in path:
        raise ValueError(f"import_path {path!r} must have the form module:attribute or module.attribute")
    elif path.startswith(".") or path.endswith("."):
        raise ValueError(f"import_path {path!r} must not begin or end with '.'")
    return path


ImportPath = Annotated[str, AfterValidator(check_import_path)]
Name = Annotated[
    str, AfterValidator(check_name), Field(json_schema_extra={"maxLength": LONGEST_NAME, "pattern": PATTERN})
]
Port = Annotated[int, Field(ge=0, le=65535)]


class RayActorOptionsSchema(RayActorOptions):
    """`ray_actor_options` of a document."""


class gRPCOptionsSchema(gRPCOptions):
    """`grpc_options` of a V2 document: later releases write them into every one."""

    grpc_servicer_functions: list[ImportPath] = Field(default_factory=list)

    def added_to(self, http: HttpWish) -> HttpWish:
        """The wish with those of these options that were sent."""
        sent = self.model_fields_set
        has_functions = bool(self.grpc_servicer_functions)
        return replace(
            http,
            grpc_port=self.port if has_functions and "port" in sent else None,
            grpc_servicers=tuple(self.grpc_servicer_functions) if "grpc_servicer_functions" in sent else None,
            grpc_request_timeout_s=(self.request_timeout_s or 0.0) if "request_timeout_s" in sent else None,
            grpc_reflection=self.enable_reflection if "enable_reflection" in sent else None,
        )


class HTTPOptionsSchema(Document):
    """`http_options` of a V2 document."""

    host: str = "127.0.0.1"
    port: Port = 8000
    root_path: str = ""
    request_timeout_s: Positive | None = None
    keep_alive_timeout_s: Positive | None = None
    ssl_certfile: AbsolutePath | None = None
    ssl_keyfile: AbsolutePath | None = None
    ssl_keyfile_password: Passphrase | None = Field(default=None, repr=False)
    ssl_ca_certs: AbsolutePath | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "middlewares": "wrap the application's own ASGI app in the middleware",
        "location": "set proxy_location at the top level",
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """A certificate needs its key."""
        return tls_faults(raw)

    def http_wish(self, location: str | None) -> HttpWish:
        """Those of them that were sent."""
        lifted: dict[str, Any] = {"request_timeout_s": 0.0, "keep_alive_timeout_s": 0.0}
        # an order to start has other keys beside these
        given = {name: getattr(self, name) for name in HTTPOptionsSchema.model_fields if name in self.model_fields_set}
        sent = {name: lifted.get(name, "") if value is None else value for name, value in given.items()}
        return HttpWish(location=location, **sent)


class DeploymentSchema(DeploymentOptions):
    """Overrides of one deployment; a key that is missing keeps the value from code."""

    name: Name
    num_replicas: Replicas | None = None
    route_prefix: RoutePrefix | None = None
    user_config: dict[str, Any] | None = None
    autoscaling_config: AutoscalingConfig | None = None
    ray_actor_options: RayActorOptionsSchema = Field(default_factory=RayActorOptionsSchema)

    key_order: ClassVar[tuple[str, ...]] = (
        "name",
        "num_replicas",
        "route_prefix",
        "max_concurrent_queries",
        "user_config",
        "autoscaling_config",
        "graceful_shutdown_wait_loop_s",
        "graceful_shutdown_timeout_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "ray_actor_options",
    )

    def stored(self) -> dict[str, Any]:
        """Only what was sent, in the order of the contract."""
        sent = self.model_dump(mode="json", exclude_unset=True)
        first = {key: sent[key] for key in self.key_order if key in sent}
        return {**first, **{key: value for key, value in sent.items() if key not in first}}


class ServeApplicationSchema(Document):
    """One application: the V1 document, and an item of the V2 one."""

    name: Name = "default"
    route_prefix: RoutePrefix | None = "/"
    import_path: ImportPath
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    host: str = "127.0.0.1"
    port: Port = 8000
    deployments: list[DeploymentSchema] = Field(default_factory=list)
    args: dict[str, Any] = Field(default_factory=dict)
    logging_config: LoggingConfig | None = None
    external_scaler_enabled: bool = False
    autoscaling_policy: AutoscalingPolicy | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "http_options": "it belongs to the top level of a multi-app config, ServeDeploySchema",
        "applications": "it belongs to a multi-app config, ServeDeploySchema",
        "proxy_location": "it belongs to the top level of a multi-app config, ServeDeploySchema",
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Refuses one deployment twice; turns absolute paths of the environment into `file:` URIs."""
        faults: list[Fault] = []
        env = raw.get("runtime_env")
        if isinstance(env, Mapping):
            faults += [(("runtime_env", *loc), reason) for loc, reason in runtime_env.uri_faults(env)]
            raw["runtime_env"] = runtime_env.normalised(env)
        if raw.get("external_scaler_enabled") is False:
            # as if not said: clients of 2.5 do not know the key
            del raw["external_scaler_enabled"]
        take_out_default_policy(raw, "autoscaling_policy")
        for index, name in repeated(raw.get("deployments"), "name", None):
            faults.append((("deployments", index, "name"), f'deployment "{name}" is listed twice'))
        return faults + scaler_faults(raw)

    def stored(self) -> dict[str, Any]:
        """Only what was sent, in the order of the contract."""
        sent = self.model_dump(mode="json", exclude_unset=True)
        if "deployments" in sent:
            sent["deployments"] = [deployment.stored() for deployment in self.deployments]
        return sent

    def to_application(self, default_logging: LoggingConfig | None = None) -> ApplicationDocument:
        """The value that the control plane takes."""
        log = self.logging_config or default_logging
        return ApplicationDocument(
            name=self.name,
            import_path=self.import_path,
            args=self.args,
            runtime_env=self.runtime_env,
            deployments=tuple(deployment.stored() for deployment in self.deployments),
            route_prefix=self.route_prefix,
            route_prefix_given="route_prefix" in self.model_fields_set,
            stored=self.stored(),
            logging_config=log.model_dump(mode="json", exclude_unset=True) if log else None,
            external_scaler_enabled=self.external_scaler_enabled,
            autoscaling_policy=policy.model_dump(mode="json") if (policy := self.autoscaling_policy) else None,
        )

    def to_goal(self) -> GoalDocument:
        """The goal behind a V1 document."""
        sent = self.model_fields_set
        http = HttpWish(
            host=self.host if "host" in sent else None,
            port=self.port if "port" in sent else None,
        )
        # the application is the whole document
        app = self.to_application()
        return GoalDocument(DeployMode.SINGLE_APP, http, (app,), self.stored(), app.logging_config or {})


class ServeDeploySchema(Document):
    """The V2 document."""

    proxy_location: DeploymentMode = DeploymentMode.EveryNode
    http_options: HTTPOptionsSchema = Field(default_factory=HTTPOptionsSchema)
    applications: list[ServeApplicationSchema]
    logging_config: LoggingConfig | None = None
    target_capacity: Annotated[float, Field(ge=0, le=100)] | None = None
    grpc_options: gRPCOptionsSchema | None = None

    hints: ClassVar[Mapping[str, str]] = {
        "controller_options": "the controller has options of `servd start` alone",
        "tracing_config": "`servd start --trace-endpoint URL --trace-ratio R`",
        "import_path": "it belongs to an item of applications",
        "runtime_env": "it belongs to an item of applications",
    }

    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "proxy_location": {"const": "Disabled"},
    }

    @classmethod
    def prepare(cls, raw: dict[str, Any]) -> list[Fault]:
        """Cross-field rules between applications; drops keys that have no effect here."""
        faults: list[Fault] = []
        if raw.get("target_capacity", 0) is None:
            del raw["target_capacity"]
        location = raw.get("proxy_location")
        if location == "Disabled":
            raw["proxy_location"] = "NoServer"
        elif location == "FixedNumber":
            del raw["proxy_location"]
            reason = "FixedNumber needs settings that no document holds; NoServer, HeadOnly or EveryNode"
            faults.append((("proxy_location",), reason))
        apps = raw.get("applications")
        for _, name in repeated(apps, "name", "default"):
            faults.append((("applications",), f'two applications are called "{name}": names must be unique'))
        for _, prefix in repeated(apps, "route_prefix", "/"):
            reason = f'two applications have route_prefix "{prefix}" (an omitted one counts as "/")'
            faults.append((("applications",), reason))
        for index, app in enumerate(apps if isinstance(apps, list) else ()):
            if isinstance(app, Mapping):
                faults += item_faults(index, app)
        return faults

    def stored(self) -> dict[str, Any]:
        """Only what was sent, in the order of the contract."""
        sent = self.model_dump(mode="json", exclude_unset=True, exclude={"http_options": {"ssl_keyfile_password"}})
        return {**sent, "applications": [app.stored() for app in self.applications]}

    def to_goal(self) -> GoalDocument:
        """The goal behind a V2 document."""
        location = str(self.proxy_location) if "proxy_location" in self.model_fields_set else None
        http = self.http_options.http_wish(location)
        if self.grpc_options is not None:
            http = self.grpc_options.added_to(http)
        apps = tuple(app.to_application(self.logging_config) for app in self.applications)
        log = self.logging_config.model_dump(mode="json", exclude_unset=True) if self.logging_config else {}
        return GoalDocument(DeployMode.MULTI_APP, http, apps, self.stored(), log, target_capacity=self.target_capacity)


def parse_v1(raw: Any, place: Place | None = None) -> GoalDocument:
    """The goal behind the body of a V1 PUT.

    Raises:
        ConfigError: lists every fault with its place; or the body names the application.
    """
    document = validated(ServeApplicationSchema, raw, place)
    if "name" in raw:
        raise ConfigError(
            "ServeApplicationSchema: name: a single-app config has no name; names belong to multi-app "
            "configs, ServeDeploySchema (PUT /api/serve/applications/)"
        )
    return document.to_goal()


def parse_v2(raw: Any, place: Place | None = None) -> GoalDocument:
    """The goal behind the body of a V2 PUT.

    Raises:
        ConfigError: lists every fault with its place.
    """
    return validated(ServeDeploySchema, raw, place).to_goal()


def __getattr__(name: str) -> Any:
    value = globals()[name] = stand_in(__name__, name)
    return value
