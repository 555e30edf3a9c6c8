"""The fork server's desk for policies, with processes that are none: who shares one, when it ends, and that nobody waits."""

import json
import select
import socket
from collections.abc import Iterator

import pytest

from servd.replica.policies import desk as desk_module
from servd.replica.policies.desk import IT_STARTS, UNASKED_S, PolicyDesk
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
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator["Desk"]:
    found = Desk(monkeypatch)
    yield found
    found.desk.close()


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
    desk.now += 5.0
    assert desk.desk.look() == [PolicyAnswer("1", error=IT_STARTS)]
    # who asks once more is told the same; it has one question to answer when it is there
    assert desk.ask("2") == [PolicyAnswer("2", error=IT_STARTS)]
    desk.now += 54.0
    assert desk.desk.look() == []
    process = desk.processes[0]
    assert process.asked() == ["1"]
    process.end.send(record(PolicyAnswer("1")))
    assert len(desk.heard()) == 1
    # from then on each question has its own time
    desk.ask("3")
    desk.now += 5.0
    (ended,) = desk.desk.look()
    assert ended.ask_id == "3"
    assert ended.error.startswith("it took too long, and was ended")
    assert process.is_killed


def test_a_question_that_is_open_at_the_first_answer_has_no_more_than_its_own_time(desk: Desk) -> None:
    desk.desk = PolicyDesk(desk.fork, desk.poller, 60.0)
    desk.ask("1")
    desk.now += 1.0
    desk.processes[0].end.send(record(PolicyAnswer("0")))
    desk.heard()
    desk.now += 4.0
    assert [answer.ask_id for answer in desk.desk.look()] == ["1"]
    assert desk.processes[0].is_killed


def test_one_that_never_answers_is_ended_when_its_import_may_take_no_longer(desk: Desk) -> None:
    desk.desk = PolicyDesk(desk.fork, desk.poller, 60.0)
    desk.ask("1")
    for _ in range(60):
        assert not desk.processes[0].is_killed
        desk.now += 1.0
        desk.desk.look()
        desk.ask("2")
    assert desk.processes[0].is_killed


def test_what_ends_is_started_again_ever_later(desk: Desk) -> None:
    began = desk.now
    starts = []
    while desk.now < began + 200.0:
        if desk.ask("1") == []:
            starts.append(desk.now - began)
            desk.processes[-1].end.close()
            (ended,) = desk.heard()
            assert ended.error.startswith("its process has ended; the next one starts ")
        else:
            # one reason while it rests: no news
            assert desk.ask("2") == [PolicyAnswer("2", error=ended.error)]
        desk.desk.look()
        desk.now += 0.5
    assert starts == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0]
    # others are not held up
    assert desk.ask("3", "E") == []


def test_one_that_never_answers_rests_ever_longer(desk: Desk) -> None:
    desk.desk = PolicyDesk(desk.fork, desk.poller, 60.0)
    ended, rests = 0.0, []
    for _ in range(400):
        count = len(desk.processes)
        desk.ask("1")
        if ended and len(desk.processes) > count:
            rests.append(desk.now - ended)
            ended = 0.0
        desk.now += 1.0
        desk.desk.look()
        if desk.processes[-1].is_killed and not ended:
            ended = desk.now
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_one_that_has_long_done_is_started_at_once_after_an_end(desk: Desk) -> None:
    rests = []
    for lives_s in (0.0, 1.0, 200.0, 0.0):
        assert desk.ask("1") == []
        for _ in range(int(lives_s)):
            desk.now += 1.0
            desk.processes[-1].end.send(record(PolicyAnswer("1")))
            desk.heard()
            desk.ask("1")
            desk.desk.look()
        desk.processes[-1].end.close()
        desk.heard()
        ended_at = desk.now
        while desk.ask("2"):
            desk.now += 1.0
        rests.append(desk.now - ended_at)
        desk.processes[-1].asked()
        desk.processes[-1].end.send(record(PolicyAnswer("2")))
        desk.heard()
    assert rests == [1.0, 2.0, 1.0, 2.0]


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
