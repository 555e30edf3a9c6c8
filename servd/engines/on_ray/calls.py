"""servd's handles on a Ray cluster: each call travels, pickled by servd, through a handle of Ray's."""

from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from ray import serve
from ray.serve import exceptions as ray_exceptions

from servd.calls.arguments import NO_ARGUMENTS, Arguments
from servd.calls.request_context import RequestContext
from servd.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RemoteFailure,
    RequestCancelledError,
    UnknownDeploymentError,
)
from servd.ground.clock import SystemClock
from servd.ground.ids import DeploymentID, full_name_of
from servd.handle import DeploymentHandle

VALUE, FAILURE = "value", "failure"
Part = tuple[str, list[bytes]]
"""`VALUE` and the pickle of a result, or `FAILURE` and that of an exception."""


def context_from(request: tuple[Any, ...], app: str) -> RequestContext:
    """The request that a call is made for, as it arrives."""
    request_id, route, model_id, left_s, depth = request
    deadline = None if left_s is None else SystemClock().now() + left_s
    return RequestContext(request_id, route, app, model_id, deadline, depth)


class ClusterCaller:
    """Sends the calls of an application's replicas. app: whose."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._handles: dict[str, Any] = {}

    def submit_call(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        *,
        stream: bool = False,
        model_id: str = "",
        deadline: float | None = None,
        session_id: str = "",
        arguments: Arguments = NO_ARGUMENTS,  # noqa: ARG002 - a text of theirs is inside the pickle that the cluster sees
    ) -> "ClusterTicket":
        """Send a call to a replica of the deployment; full name."""
        handle = self._handles.get(deployment)
        if handle is None:
            handle = self._handles[deployment] = serve.get_deployment_handle(*self._place_of(deployment))
        left_s = None if deadline is None else deadline - SystemClock().now()
        request = (context.request_id, context.route, model_id, left_s, context.depth + 1)
        session = {"session_id": session_id} if session_id else {}
        called = handle.options(method_name="servd_stream" if stream else "servd_call", stream=stream, **session)
        return ClusterTicket(deployment, called.remote(method, [bytes(part) for part in parts], request))

    async def submit_to_all(
        self,
        deployment: str,
        method: str,
        parts: list[Any],
        context: RequestContext,
        deadline: float | None,
    ) -> list["ClusterTicket"]:
        """Refuses: Ray says of no handle of this kind which replicas there are."""
        raise NotImplementedError(
            f"{deployment}.{method}: a call to all replicas has no way through servd's handles on a Ray cluster; what all of "
            "them are to know is `user_config`"
        )

    def _place_of(self, full_name: str) -> tuple[str, str]:
        """Bare name and application."""
        own = f"{self._app}_"
        if full_name.startswith(own):
            return full_name.removeprefix(own), self._app
        for app, about in serve.status().applications.items():
            for name in about.deployments:
                if full_name_of(app, name) == full_name:
                    return name, app
        raise UnknownDeploymentError(f"no deployment {full_name!r} runs on the cluster")


class ClusterTicket:
    """One call on its way."""

    def __init__(self, deployment: str, response: Any) -> None:
        self._deployment, self._response = deployment, response

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> list[bytes]:
        try:
            return _parts(await self._response)
        except Exception as error:
            raise self._told(error) from error

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for part in self._response:
                yield _parts(part)
        except Exception as error:
            raise self._told(error) from error

    def when_sent(self, told: Callable[[], None]) -> None:
        """Ray chooses the replica in its own time."""
        told()

    def cancel(self) -> None:
        """Take the call back, best effort."""
        self._response.cancel()

    def _told(self, error: Exception) -> Exception:
        """Ray's errors as servd's callers know them."""
        if isinstance(error, ray_exceptions.BackPressureError):
            return BackPressureError(self._deployment, *error.args[:2])
        if isinstance(error, ray_exceptions.DeploymentUnavailableError):
            return DeploymentUnavailableError(self._deployment, str(error))
        if isinstance(error, ray_exceptions.RequestCancelledError):
            return RequestCancelledError(str(error))
        return error


def _parts(part: Part) -> list[bytes]:
    kind, found = part
    if kind == FAILURE:
        raise RemoteFailure(list(found))
    return found


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle:
    """A handle to a deployment by its bare name; without an application, of the caller's own."""
    return DeploymentHandle(DeploymentID(deployment_name, app_name or serve.get_replica_context().app_name))


def get_app_handle(name: str) -> DeploymentHandle:
    """A handle to the ingress of an application."""
    return DeploymentHandle(DeploymentID(serve.get_app_handle(name).deployment_id.name, name))
