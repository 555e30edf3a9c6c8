"""Methods of handles: their own `__call__`, and what type checkers know of `DeploymentHandle[Model].options`, whose methods it
takes, and what calls of them give."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NoReturn, Protocol, Self, overload

from servd.calls.response import DeploymentResponse, DeploymentResponseGenerator
from servd.ground.absent import refuse_of_handles
from servd.ground.parametrized import Answer, Parameters, Parametrized, Served


class MethodHandle(Protocol[Parameters, Answer]):
    """A handle to one method whose parameters are known. Answer: what a call gives, a response or a stream."""

    def remote(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        """Call the method."""


class StreamingHandle(Protocol[Served]):
    """A handle after `options(stream=True)`."""

    @property
    def deployment_name(self) -> str:
        """Full name `<app>_<name>`."""

    @property
    def app_name(self) -> str:
        """Name of the application."""

    def options(
        self,
        *,
        method_name: str | None = None,
        multiplexed_model_id: str | None = None,
        session_id: str | None = None,
        stream: Literal[True] | None = None,
    ) -> Self:
        """A copy of this handle with other options."""

    def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponseGenerator[Any]:
        """Call the deployment."""

    def __getattr__(self, name: str) -> Self:
        """The handle to a method."""


class NamedMethod(Parametrized[Served, Answer]):
    """What a handle to a method is of, for `servd.app.mypy_plugin`. Served: the class, Answer: the method's name."""


class TypedCalls(Parametrized[Served]):
    """The types of `options`; what it does is the handle's."""

    __slots__ = ()

    if TYPE_CHECKING:

        @overload
        def options(
            self,
            *,
            method_name: Callable[Concatenate[Served, Parameters], AsyncIterator[Answer] | Iterator[Answer]],
            multiplexed_model_id: str | None = None,
            session_id: str | None = None,
            stream: Literal[True],
        ) -> MethodHandle[Parameters, DeploymentResponseGenerator[Answer]]: ...
        @overload
        def options(
            self,
            *,
            method_name: Callable[Concatenate[Served, Parameters], Coroutine[Any, Any, Answer]],
            multiplexed_model_id: str | None = None,
            session_id: str | None = None,
            stream: Literal[False] | None = None,
        ) -> MethodHandle[Parameters, DeploymentResponse[Answer]]: ...
        @overload
        def options(
            self,
            *,
            method_name: Callable[Concatenate[Served, Parameters], Answer],
            multiplexed_model_id: str | None = None,
            session_id: str | None = None,
            stream: Literal[False] | None = None,
        ) -> MethodHandle[Parameters, DeploymentResponse[Answer]]: ...
        @overload
        def options(  # type: ignore[overload-overlap]
            self,
            *,
            method_name: str | None = None,
            multiplexed_model_id: str | None = None,
            session_id: str | None = None,
            stream: Literal[True],
            use_new_handle_api: bool | None = None,
            request_serialization: str | None = None,
            response_serialization: str | None = None,
            _by_reference: bool | None = None,
            _prefer_local_routing: bool | None = None,
        ) -> StreamingHandle[Served]: ...
        @overload
        def options(
            self,
            *,
            method_name: str | None = None,
            multiplexed_model_id: str | None = None,
            session_id: str | None = None,
            stream: bool | None = None,
            use_new_handle_api: bool | None = None,
            request_serialization: str | None = None,
            response_serialization: str | None = None,
            _by_reference: bool | None = None,
            _prefer_local_routing: bool | None = None,
        ) -> Self: ...
        def options(self, **options: Any) -> Any: ...


def name_of_method(method: Callable[..., Any]) -> str:
    """Name of a method that is given as `Class.method`.

    Raises:
        TypeError: it has none, or is a class.
    """
    name = getattr(method, "__name__", None)
    if not isinstance(name, str) or isinstance(method, type):
        raise TypeError(f"method_name is a method's name, or the method as `Class.method`, got {method!r}")
    return name


class CallAttribute:
    """Descriptor of classes of handles, which have `options` and `_method`."""

    def __get__(self, handle: Any, _owner: type | None = None) -> "CalledHandle":
        return CalledHandle(handle)


class CalledHandle:
    """The deployment's own `__call__`, as any other method of a handle; also what the interpreter calls for `handle(...)`."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        method = self._handle._method
        refuse_of_handles(method)
        call = "" if method == "__call__" else f".{method}"
        raise TypeError(f"a handle is called with `.remote`: `await handle{call}.remote(...)`")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._handle.options(method_name="__call__"), name)
