"""What type checkers are told of `batch` is what it takes."""

import inspect
from types import SimpleNamespace
from typing import Any, get_overloads

from servd.app import batch_types
from servd.batching import batch


def test_its_options_are_those_of_the_function() -> None:
    # a protocol has overloads and no function that they belong to
    name: Any = SimpleNamespace(__module__=batch_types.__name__, __qualname__="BatchDecorator.__call__")
    told = get_overloads(name)[-1]
    known = list(inspect.signature(told).parameters.values())[1:]
    real = list(inspect.signature(batch).parameters.values())
    assert [(one.name, one.kind, one.default) for one in known] == [(one.name, one.kind, one.default) for one in real]
