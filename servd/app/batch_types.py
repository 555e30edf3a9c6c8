"""What type checkers know of `batch`: a function of lists becomes one of single values."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload

_Answer = TypeVar("_Answer", covariant=True)
_Owner = TypeVar("_Owner", contravariant=True)
_Parameters = ParamSpec("_Parameters")
_First = TypeVar("_First")
_Second = TypeVar("_Second")
_Found = TypeVar("_Found")
_Self = TypeVar("_Self")


class _Settings(Protocol):
    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        """Change the size, from the next batch on."""

    def set_batch_wait_timeout_s(self, new_batch_wait_timeout_s: float) -> None:
        """Change the wait, seconds, from the next batch on."""


class Batched(_Settings, Protocol[_Parameters, _Answer]):
    """A batched function as its callers see it, or a batched method of an instance."""

    def __call__(self, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Answer:
        """One item of a batch."""


class BatchedMethod(_Settings, Protocol[_Owner, _Parameters, _Answer]):
    """A batched method in its class."""

    def __call__(self, owner: _Owner, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Answer:
        """One item of a batch."""

    @overload
    def __get__(self, owner: None, kind: Any, /) -> "BatchedMethod[_Owner, _Parameters, _Answer]": ...
    @overload
    def __get__(self, owner: _Owner, kind: Any = None, /) -> Batched[_Parameters, _Answer]: ...


class BatchDecorator(Protocol):
    """`batch`, bare or with options. A method takes one list or two, a function one; all other types stay open."""

    @overload
    def __call__(
        self, _func: Callable[[list[_First]], Coroutine[Any, Any, list[_Found]]], /
    ) -> Batched[[_First], Coroutine[Any, Any, _Found]]: ...
    @overload
    def __call__(
        self, _func: Callable[[list[_First]], AsyncGenerator[list[_Found], None]], /
    ) -> Batched[[_First], AsyncGenerator[_Found, None]]: ...
    @overload
    def __call__(
        self, _func: Callable[[_Self, list[_First]], Coroutine[Any, Any, list[_Found]]], /
    ) -> BatchedMethod[_Self, [_First], Coroutine[Any, Any, _Found]]: ...
    @overload
    def __call__(
        self, _func: Callable[[_Self, list[_First]], AsyncGenerator[list[_Found], None]], /
    ) -> BatchedMethod[_Self, [_First], AsyncGenerator[_Found, None]]: ...
    @overload
    def __call__(
        self, _func: Callable[[_Self, list[_First], list[_Second]], Coroutine[Any, Any, list[_Found]]], /
    ) -> BatchedMethod[_Self, [_First, _Second], Coroutine[Any, Any, _Found]]: ...
    @overload
    def __call__(
        self, _func: Callable[[_Self, list[_First], list[_Second]], AsyncGenerator[list[_Found], None]], /
    ) -> BatchedMethod[_Self, [_First, _Second], AsyncGenerator[_Found, None]]: ...
    @overload
    def __call__(self, _func: Callable[..., Any], /) -> Any: ...
    @overload
    def __call__(
        self,
        _func: None = None,
        max_batch_size: int = 10,
        batch_wait_timeout_s: float = 0.0,
        max_concurrent_batches: int = 1,
        *,
        batch_size_fn: Callable[[list[Any]], int] | None = None,
        on_error: str = "fail",
    ) -> "BatchDecorator": ...


batch: BatchDecorator
"""What `servd.batch` is to type checkers; `servd.batching` has the function."""
