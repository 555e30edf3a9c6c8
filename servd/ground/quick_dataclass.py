"""`dataclass` at a tenth of its cost: the one for modules that every process loads.

The standard decorator compiles up to ten functions for each class, 0.5 ms of every start of every process. This one
gives a class functions that read its fields when they run, and compiles `__init__` alone, at the first instance.
Fields, defaults, `replace`, `fields`, `asdict`, `match`, equality, hash, order, pickling and the errors of frozen
classes are as usual; type checkers see the standard decorator.
"""

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

_T = TypeVar("_T")
_Key = Callable[[Any], Any]


def _decorator(
    *, frozen: bool = False, slots: bool = False, order: bool = False, eq: bool = True
) -> Callable[[type[_T]], type[_T]]:
    """What the standard decorator is with the same arguments. `slots` must be true: it is how fields are set."""
    assert slots

    def decorate(cls: type[_T]) -> type[_T]:
        # without a text of its own the standard decorator would derive one from the signature
        cls.__doc__ = cls.__doc__ or cls.__name__
        own = set(vars(cls))
        made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
        key = _key_of([field.name for field in dataclasses.fields(made) if field.compare])
        methods: dict[str, Any] = {"__init__": _first_init(made), "__repr__": _repr}
        if eq:
            methods["__eq__"] = _equality(key)
            methods["__hash__"] = _hash(key) if frozen else None
        if order:
            methods |= _order(key)
        if frozen:
            methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
            methods |= {"__getstate__": _get_state, "__setstate__": _set_state}
        for name, method in methods.items():
            if name not in own:
                setattr(made, name, method)
        if "__init__" not in own:
            _uncompiled.add(made)
        return made  # type: ignore[no-any-return]

    return decorate


def compile_now(*classes: type[Any]) -> None:
    """Compile the `__init__` of these, if that has not been done: before a fork it is done once for all children."""
    for cls in classes:
        if cls in _uncompiled:
            _put_compiled(cls)


_uncompiled: set[type[Any]] = set()


def _first_init(cls: type[Any]) -> Callable[..., None]:
    """An `__init__` that puts a compiled one in its place."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _put_compiled(cls)(self, *args, **kwargs)

    return __init__


def _put_compiled(cls: type[Any]) -> Callable[..., None]:
    compiled = _compiled_init(cls)
    setattr(cls, "__init__", compiled)  # noqa: B010 - a checker forbids the plain assignment
    _uncompiled.discard(cls)
    return compiled


def _compiled_init(cls: type[Any]) -> Callable[..., None]:
    names: dict[str, Any] = {"_missing": dataclasses.MISSING}
    parameters, lines = ["self"], []
    for field in dataclasses.fields(cls):
        name = field.name
        # the slot's own setter: a frozen class refuses every other way
        names[f"_set_{name}"] = getattr(cls, name).__set__
        if field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"] = field.default_factory
            parameters.append(f"{name}=_missing")
            lines.append(f"_set_{name}(self, _make_{name}() if {name} is _missing else {name})")
            continue
        if field.default is not dataclasses.MISSING:
            names[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        lines.append(f"_set_{name}(self, {name})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    body = "\n  ".join(lines or ["pass"])
    exec(f"def __init__({', '.join(parameters)}):\n  {body}", names)
    init: Any = names["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init  # type: ignore[no-any-return]


def _key_of(names: list[str]) -> _Key:
    return attrgetter(*names) if names else _nothing


def _nothing(_: Any) -> tuple[()]:
    return ()


def _equality(key: _Key) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:
        return bool(key(self) == key(other)) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _hash(key: _Key) -> Callable[[Any], int]:
    def __hash__(self: Any) -> int:
        return hash(key(self))

    return __hash__


def _order(key: _Key) -> dict[str, Callable[[Any, Any], bool]]:
    def __lt__(self: Any, other: Any) -> bool:
        return bool(key(self) < key(other)) if other.__class__ is self.__class__ else NotImplemented

    def __le__(self: Any, other: Any) -> bool:
        return bool(key(self) <= key(other)) if other.__class__ is self.__class__ else NotImplemented

    def __gt__(self: Any, other: Any) -> bool:
        return bool(key(self) > key(other)) if other.__class__ is self.__class__ else NotImplemented

    def __ge__(self: Any, other: Any) -> bool:
        return bool(key(self) >= key(other)) if other.__class__ is self.__class__ else NotImplemented

    return {"__lt__": __lt__, "__le__": __le__, "__gt__": __gt__, "__ge__": __ge__}


def _repr(self: Any) -> str:
    shown = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__} is frozen: cannot set or delete {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    """What another edition pickled may lack the last fields, or have more."""
    fields = dataclasses.fields(self)
    for field, value in zip(fields, state, strict=False):
        object.__setattr__(self, field.name, value)
    for field in fields[len(state) :]:
        object.__setattr__(self, field.name, _default_of(field))


def _default_of(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.default is dataclasses.MISSING:
        raise TypeError(f"the pickled state lacks {field.name!r}")
    return field.default


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    dataclass = _decorator
