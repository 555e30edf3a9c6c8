"""Generators of random numbers that are there before a fork: each child draws other numbers from those without a seed."""

import copy
import os
import pickle
import random
import secrets
import sqlite3
from typing import Any

import pytest

from servd.replica.native import generators
from servd.replica.native.generators import note_generators, reseed, unseeded_noted


@pytest.fixture(autouse=True)
def _own_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "_unseeded", {})
    monkeypatch.setattr(generators, "_drawn", set())
    monkeypatch.setattr(generators, "_found", [])


class Names(random.Random):
    """As Faker's: seeded by its library, in the end."""

    def seed(self, *args: Any, **kwargs: Any) -> None:
        super().seed(*args, **kwargs)


@pytest.mark.parametrize("kind", [random.Random, Names])
def test_pythons_are_seeded_anew_unless_they_were_given_a_seed_or_a_state(kind: type[random.Random]) -> None:
    with unseeded_noted():
        fresh, late, early = kind(), kind(), kind(1)
        late.seed(1)
        early.seed()
        loaded = pickle.loads(pickle.dumps(kind(1)))
        copied = copy.copy(kind(1))
        dropped = kind()
        assert kind(1).random() == kind(1).random()
    del dropped
    later = kind()
    before = {generator: generator.getstate() for generator in (fresh, early, late, loaded, copied, later)}
    note_generators()
    reseed()
    assert [one for one in before if one.getstate() != before[one]] == [fresh, early]


def test_nothing_stays_of_the_looks_on() -> None:
    seed, set_state, draw = random.Random.seed, random.Random.setstate, secrets.randbits
    with unseeded_noted():
        noting = secrets.randbits
        assert noting is not draw
        assert noting(128) in generators._drawn
    assert (random.Random.seed, random.Random.setstate, secrets.randbits) == (seed, set_state, draw)
    drawn = set(generators._drawn)
    # as a library goes on with what it has imported
    noting(128)
    assert drawn == generators._drawn
    with unseeded_noted():
        assert noting(128) in generators._drawn


def test_numpys_are_seeded_anew_in_their_place_unless_they_were_given_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    source = pytest.importorskip("numpy.random.bit_generator")
    with unseeded_noted():
        # as if it were imported here
        monkeypatch.setattr(source, "randbits", secrets.randbits)
        kinds = [numpy.random.default_rng, numpy.random.RandomState]
        kinds += [
            lambda *seed, kind=kind: numpy.random.Generator(getattr(numpy.random, kind)(*seed))
            for kind in ("Philox", "SFC64", "MT19937")
        ]
        fresh, seeded = [make() for make in kinds], [make(1) for make in kinds]
        seeded += [pickle.loads(pickle.dumps(one)) for one in seeded]
        seeded.append(numpy.random.default_rng([1, 2]))
        copied = copy.deepcopy(fresh)
        assert [one.random() for one in fresh] == [one.random() for one in copied]
    expected = copy.deepcopy(seeded)
    note_generators()
    reseed()
    assert [one.random() for one in seeded] == [one.random() for one in expected]
    drawn = [one.random() for one in (*fresh, *copied)]
    assert len(set(drawn)) == len(drawn)
    children = [one.spawn(1)[0].random() for one in (fresh[0], copied[0])]
    assert children[0] != children[1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_sqlite_draws_others_in_each_child() -> None:
    database = sqlite3.connect(":memory:")

    def draw() -> bytes:
        (drawn,) = database.execute("select randomblob(16)").fetchone()
        return bytes(drawn)

    drawn = [draw()]
    for _ in range(2):
        end, start = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                reseed()
                os.write(start, draw())
            finally:
                os._exit(0)
        drawn.append(os.read(end, 16))
        os.waitpid(pid, 0)
        os.close(end)
        os.close(start)
    assert len({*drawn, draw()}) == 4
    database.close()
