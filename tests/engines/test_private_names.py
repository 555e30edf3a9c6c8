"""The names of Ray's that are no part of its public API: a release that lacks one is told so, and what to do."""

import importlib
import sys
from types import ModuleType

import pytest

HERE = "servd.engines.on_ray.private_names"
NAMES = {
    "ray.serve._private.http_util": "ASGIAppReplicaWrapper",
    "ray.serve.context": "_get_serve_request_context",
}


@pytest.mark.parametrize("missing", NAMES)
def test_a_release_without_one_of_them_is_told_so(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray", "ray.serve", "ray.serve._private", *NAMES):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    sys.modules["ray"].__version__ = "9.9.9"  # type: ignore[attr-defined]
    for module, name in NAMES.items():
        if module != missing:
            setattr(sys.modules[module], name, object())
    monkeypatch.delitem(sys.modules, HERE, raising=False)
    expected = rf"Ray 9\.9\.9 has no {missing}\.{NAMES[missing]}, which .*: use that on the cluster"
    with pytest.raises(NotImplementedError, match=expected):
        importlib.import_module(HERE)
    # with both it imports
    setattr(sys.modules[missing], NAMES[missing], object())
    importlib.import_module(HERE)
    monkeypatch.delitem(sys.modules, HERE)
