"""The fork server's desk for policies, with processes that are none: who shares one, when it ends, and that nobody waits."""

import json
import select
import socket

import pytest

from servd.replica.policies import desk as desk_module
from servd.replica.policies.desk import UNASKED_S, PolicyDesk
from servd.wire.codec import RecordReader, record
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk


class Process:
    """The other end of a pair, in the test's hand."""

    def __init__(self, end: socket.socket) -> None:
        self.pid, self.is_killed = 1, False
        self.end = end.dup()
        self.end.setblocking(False)
        self.reader = RecordReader()

    def kill(self) -> None:
        self.is_killed = True
        self.end.close()

    def join(self, timeout: float | None = None) -> None:
        assert self.is_killed

    def asked(self) -> list[str]:
        """Ids of the questions that it has heard whole since the last call."""
        found = []
        try:
            while data := self.end.recv(65536):
                found += [ask.ask_id for ask in self.reader.feed(data)]
        except BlockingIOError:
            pass
        return found


class Desk:
    """The desk, its processes, and its clock."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(desk_module, "_now", lambda: self.now)
        self.processes: list[Process] = []
        self.poller = select.poll()
        self.desk = PolicyDesk(self.fork, self.poller)

    def fork(self, end: socket.socket, _deployment: str) -> Process:
        self.processes.append(Process(end))
        return self.processes[-1]

    def ask(self, ask_id: str, deployment: str = "D", kwargs: str = "{}", contexts: str = "[]") -> list[PolicyAnswer]:
        return self.desk.ask(PolicyAsk(ask_id, "m:policy", kwargs, contexts, deployment=deployment))

    def heard(self) -> list[PolicyAnswer]:
        return [answer for fd, _ in self.poller.poll(0) for answer in self.desk.hear(fd)]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> "Desk":
    return Desk(monkeypatch)


def test_each_deployment_has_a_process_of_its_own(desk: Desk) -> None:
    for ask_id, deployment in (("1", "D"), ("2", "E"), ("3", "")):
        assert desk.ask(ask_id, deployment) == []
    assert [process.asked() for process in desk.processes] == [["1"], ["2"], ["3"]]
    desk.processes[1].end.send(record(PolicyAnswer("2", {"E": 3.0})))
    assert desk.heard() == [PolicyAnswer("2", {"E": 3.0})]
    # it is there already
    desk.ask("4", "E")
    assert desk.processes[1].asked() == ["4"]
    desk.desk.close()


def test_a_policy_that_nobody_asks_any_more_ends(desk: Desk) -> None:
    desk.ask("1", kwargs=json.dumps({"a": 1}))
    old = desk.processes[0]
    old.end.send(record(PolicyAnswer("1")))
    desk.heard()
    desk.now += UNASKED_S - 1.0
    desk.ask("2", kwargs=json.dumps({"a": 2}))
    assert desk.desk.look() == []
    assert not old.is_killed
    desk.now += 1.0
    assert desk.desk.look() == []
    assert [process.is_killed for process in desk.processes] == [True, False]
    desk.desk.close()


def test_one_that_imports_the_application_first_may_take_its_time_once(desk: Desk) -> None:
    desk.desk = PolicyDesk(desk.fork, desk.poller, 60.0)
    desk.ask("1")
    desk.now += 30.0
    desk.ask("2")
    desk.now += 29.0
    assert desk.desk.look() == []
    desk.processes[0].end.send(record(PolicyAnswer("1")) + record(PolicyAnswer("2")))
    assert len(desk.heard()) == 2
    desk.ask("3")
    desk.now += 5.0
    assert desk.desk.look() == [PolicyAnswer("3", error="it took too long, and was ended")]
    assert desk.processes[0].is_killed


def test_a_process_that_takes_nothing_holds_nobody_up(desk: Desk) -> None:
    contexts = json.dumps(["x" * 4_000_000])
    desk.ask("1", contexts=contexts)
    desk.ask("2")
    process, heard = desk.processes[0], []
    while len(heard) < 2:
        heard += process.asked()
        # writable again: the rest follows
        assert desk.heard() == []
    assert heard == ["1", "2"]
    # nothing is left to send: nobody is woken for it
    assert desk.poller.poll(0) == []
    desk.desk.close()
