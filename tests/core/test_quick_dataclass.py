"""The quick `dataclass` does what the standard one does."""

import copy
import dataclasses
import operator
import pickle
from typing import Any

import pytest

from servd.ground.quick_dataclass import compile_now, dataclass


@dataclass(frozen=True, slots=True, order=True)
class Quick:
    """A value."""

    name: str
    count: int = 3
    tags: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)
    secret: str = dataclasses.field(default="", repr=False)

    @property
    def double(self) -> int:
        return self.count * 2


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Standard:
    """A value."""

    name: str
    count: int = 3
    tags: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)
    secret: str = dataclasses.field(default="", repr=False)


@dataclass(slots=True)
class Changing:
    items: list[int] = dataclasses.field(default_factory=list)


@dataclass(slots=True, eq=False)
class Thing:
    name: str


@dataclass(frozen=True, slots=True)
class Empty:
    pass


@pytest.mark.parametrize(
    ("args", "options"),
    [(("a",), {}), (("a", 4, {"x": 1}, "s"), {}), ((), {"secret": "s", "name": "a"}), (("a",), {"tags": {}})],
)
def test_instances_are_those_of_the_standard_decorator(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    quick, standard = Quick(*args, **options), Standard(*args, **options)
    assert dataclasses.asdict(quick) == dataclasses.asdict(standard)
    assert repr(quick) == repr(standard).replace("Standard", "Quick")
    assert quick == Quick(*args, **options)
    assert hash(quick) == hash(Quick(*args, **options))
    assert quick != standard
    assert not hasattr(quick, "__dict__")
    assert pickle.loads(pickle.dumps(quick)) == copy.deepcopy(quick) == dataclasses.replace(quick)
    assert dataclasses.replace(quick, count=9) == Quick(quick.name, 9, quick.tags, quick.secret)
    assert quick.double == 2 * quick.count


@pytest.mark.parametrize(("args", "options"), [((), {}), (("a", 1, {}, "", 5), {}), (("a",), {"wrong": 1})])
def test_wrong_arguments_are_refused_first_and_later(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match=r"__init__\(\)"):
            Quick(*args, **options)


def test_frozen_ones_cannot_be_changed() -> None:
    value: Any = Quick("a")
    for act in (lambda: setattr(value, "count", 1), lambda: delattr(value, "name"), lambda: setattr(value, "new", 1)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            act()
    changing = Changing()
    changing.items = [1]
    assert changing == Changing([1])
    assert Changing().items is not Changing().items
    with pytest.raises(TypeError, match="unhashable"):
        hash(changing)


def test_order_identity_and_patterns() -> None:
    values = [Quick("b"), Quick("a", 4), Quick("a")]
    assert sorted(values) == [Quick("a"), Quick("a", 4), Quick("b")]
    assert Quick("a") <= Quick("a") >= Quick("a")
    assert Quick("b") > Quick("a")
    with pytest.raises(TypeError):
        operator.lt(Quick("a"), "a")
    assert Thing("a") != Thing("a")
    assert len({Thing("a"), Thing("a")}) == 2
    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
    assert (Quick.__doc__, Changing.__doc__) == ("A value.", "Changing")
    match Quick("a", 5):
        case Quick(name, count):
            assert (name, count) == ("a", 5)


@pytest.mark.parametrize(
    ("state", "expected"), [(["a"], Quick("a")), (["a", 2, {}, "s", "of tomorrow"], Quick("a", 2, {}, "s"))]
)
def test_what_another_edition_pickled_has_its_defaults_and_nothing_unknown(state: list[Any], expected: Quick) -> None:
    found = Quick.__new__(Quick)
    found.__setstate__(state)  # type: ignore[attr-defined]
    assert found == expected
    with pytest.raises(TypeError, match="lacks 'name'"):
        Quick.__new__(Quick).__setstate__([])  # type: ignore[attr-defined]


def test_a_class_is_compiled_before_its_first_instance_where_that_is_asked_for() -> None:
    @dataclass(frozen=True, slots=True)
    class Early:
        name: str
        count: int = 3

    @dataclass(slots=True)
    class WithItsOwn:
        name: str

        def __init__(self) -> None:
            self.name = "its own"

    before = Early.__init__
    compile_now(Early, WithItsOwn)
    assert Early.__init__ is not before
    compiled = Early.__init__
    compile_now(Early)
    assert Early("a") == Early("a", 3)
    assert Early.__init__ is compiled
    assert WithItsOwn().name == "its own"
