import random

import pytest

from servd.replica.admission import Admission


def test_cap_is_exact() -> None:
    admission: Admission[str] = Admission(2)
    assert [admission.admit("a"), admission.admit("b"), admission.admit("b")] == [True, True, False]


def test_a_refused_caller_is_offered_the_freed_slot() -> None:
    admission: Admission[str] = Admission(1)
    admission.admit("a")
    admission.admit("b")
    admission.release()
    assert admission.next_offer() == "b"
    assert not admission.admit("a"), "the slot is held"
    assert admission.claim("b")


def test_offers_go_to_the_oldest_ticket_and_round() -> None:
    admission: Admission[str] = Admission(1)
    admission.admit("x")
    for caller in ("a", "a", "b"):
        admission.admit(caller)
    order = []
    for _ in range(3):
        admission.release()
        caller = admission.next_offer()
        assert caller is not None
        order.append(caller)
        assert admission.claim(caller)
    assert order == ["a", "b", "a"]


def test_declined_slot_goes_to_the_next() -> None:
    admission: Admission[str] = Admission(1)
    admission.admit("x")
    admission.admit("a")
    admission.admit("b")
    admission.release()
    assert admission.next_offer() == "a"
    admission.decline("a")
    assert admission.next_offer() == "b"


def test_leaving_takes_only_what_was_offered() -> None:
    admission: Admission[str] = Admission(1)
    admission.admit("x")
    admission.admit("a")
    admission.release()
    assert admission.next_offer() == "a"
    admission.leave()
    assert not admission.admit("b")
    assert admission.claim("a")


def test_nothing_is_taken_after_the_end() -> None:
    admission: Admission[str] = Admission(1)
    admission.admit("x")
    admission.admit("a")
    admission.release()
    assert admission.next_offer() == "a"
    admission.end()
    assert not admission.claim("a")
    assert (admission.running, admission.held, admission.next_offer()) == (0, 0, None)


def test_a_caller_that_is_gone_frees_its_offers() -> None:
    admission: Admission[str] = Admission(1)
    admission.admit("x")
    admission.admit("a")
    admission.release()
    admission.next_offer()
    admission.forget("a")
    assert admission.admit("b")


@pytest.mark.parametrize("seed", range(30))
def test_never_over_the_cap_and_nobody_starves(seed: int) -> None:
    rng = random.Random(seed)
    admission: Admission[int] = Admission(rng.randint(1, 4))
    waiting = {caller: rng.randint(0, 6) for caller in range(4)}
    sent = dict.fromkeys(waiting, 0)
    running: list[int] = []
    offers: list[int] = []
    for step in range(2000):
        assert admission.running == len(running)
        assert admission.running + admission.held <= admission.limit
        choice = rng.random()
        if choice < 0.3 and any(waiting.values()):
            caller = rng.choice([c for c, count in waiting.items() if count])
            if sent[caller] == 0:
                if admission.admit(caller):
                    waiting[caller] -= 1
                    running.append(caller)
                else:
                    sent[caller] = 1
        elif choice < 0.6 and running:
            running.pop(rng.randrange(len(running)))
            admission.release()
        elif offers:
            caller = offers.pop(0)
            if waiting[caller]:
                assert admission.claim(caller)
                waiting[caller] -= 1
                running.append(caller)
                admission.want(caller, waiting[caller])
            else:
                admission.decline(caller)
            sent[caller] = 1 if waiting[caller] else 0
        while (offered := admission.next_offer()) is not None:
            offers.append(offered)
        if not any(waiting.values()) and step > 100:
            break
    assert not any(waiting.values())
