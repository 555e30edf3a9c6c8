"""Nodes of a call graph: the request's input and calls of methods or functions. `dag` runs them."""

from typing import Any


class GraphNode:
    """Something whose value exists only while a request runs."""


class InputNode(GraphNode):
    """The request's input; used as a context manager: `with InputNode() as inp`.

    `inp` is the whole input, `inp[0]`, `inp["key"]` and `inp.key` parts of it, one level deep.
    """

    def __init__(self, *args: Any) -> None:
        if args:
            raise ValueError(f"InputNode takes no positional arguments, got {len(args)}")

    def __enter__(self) -> "InputNode":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getitem__(self, key: int | str) -> "InputPart":
        if not isinstance(key, int | str):
            raise ValueError(f"an input is indexed with an int or a str, got {type(key).__name__}")
        return InputPart(self, key, is_attribute=False)

    def __getattr__(self, name: str) -> "InputPart":
        # copy, pickle and inspect look for special names on everything
        if name.startswith("_"):
            raise AttributeError(name)
        return InputPart(self, name, is_attribute=True)


class InputPart(GraphNode):
    """One item or attribute of the input."""

    def __init__(self, source: InputNode, key: int | str, *, is_attribute: bool) -> None:
        self.source, self.key, self.is_attribute = source, key, is_attribute


class MethodNode(GraphNode):
    """A call of one method of a bound deployment."""

    def __init__(self, target: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.target, self.method, self.args, self.kwargs = target, method, args, kwargs


class UnboundMethod:
    """`app.method` before `.bind(...)`."""

    def __init__(self, target: Any, method: str) -> None:
        self._target, self._method = target, method

    def bind(self, *args: Any, **kwargs: Any) -> MethodNode:
        """The node that calls the method with these arguments; nodes among them arrive as their values."""
        return MethodNode(self._target, self._method, args, kwargs)


class RawInput:
    """What a graph was called with when that is not exactly one positional argument."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def __getitem__(self, key: int | str) -> Any:
        return self.args[key] if isinstance(key, int) else self.kwargs[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.kwargs:
            raise AttributeError(name)
        return self.kwargs[name]


def graph_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input of a graph called with these arguments: the only positional one, else a `RawInput`."""
    return args[0] if len(args) == 1 and not kwargs else RawInput(args, kwargs)


def input_part(value: Any, key: int | str, *, is_attribute: bool) -> Any:
    """The part of an input that `inp[key]` or `inp.key` names; a keyword of a `RawInput` goes by either."""
    if isinstance(value, RawInput):
        return value[key]
    return getattr(value, str(key)) if is_attribute else value[key]
