"""User code finds multiprocessing as in a program of its own, wherever it runs, and what it chooses holds in its replicas."""

import json
from pathlib import Path

import pytest

from tests.system.running_daemon import a_daemon, settings_in

pytestmark = pytest.mark.slow

APP = """
import multiprocessing, servd
FOUND = [multiprocessing.get_start_method(allow_none=True)]
{at_import}

class Base:
    def __init__(self):
        self.found = [*FOUND, multiprocessing.get_start_method(allow_none=True)]
        {in_constructor}
    def __call__(self, request):
        return [*self.found, multiprocessing.get_start_method(allow_none=True)]

@servd.deployment(name="Forked")
class Forked(Base):
    pass

@servd.deployment(name="Spawned", start_method="spawn")
class Spawned(Base):
    pass

@servd.deployment(name="Preloaded", preload=True)
class Preloaded(Base):
    pass

forked, spawned, preloaded = Forked.bind(), Spawned.bind(), Preloaded.bind()
"""
CHOICE = "multiprocessing.set_start_method('forkserver')"
KINDS = ("forked", "spawned", "preloaded")


def test_a_choice_at_import_or_in_a_constructor_is_the_first_and_holds(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(APP.format(at_import=CHOICE, in_constructor=""))
    (tmp_path / "late.py").write_text(APP.format(at_import="", in_constructor=CHOICE))
    with a_daemon(settings_in(tmp_path)) as daemon:
        for kind in KINDS:
            daemon.deploy(tmp_path, f"early:{kind}")
            assert json.loads(daemon.get()[1]) == [None, "forkserver", "forkserver"], kind
            daemon.deploy(tmp_path, f"late:{kind}")
            assert json.loads(daemon.get()[1]) == [None, None, "forkserver"], kind
