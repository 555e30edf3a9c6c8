"""A trouble at work: it begins under load, each kind of process is killed in it, it ends, and all is normal again."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from servd.ground.clock import SystemClock, block_for
from servd.ground.settings import work_dir
from servd.wire.began import LENDING_SUFFIX
from tests.faults.load import Load
from tests.faults.outcome import NORMAL_WITHIN_S, Outcome
from tests.faults.stage import Stage, proxies_are_well
from tests.system.running_daemon import RunningDaemon

VICTIMS = ("controller", "proxy", "fork server", "replica")
REPLACED_WITHIN_S = 12.0
PUT = "/api/serve/applications/"
_STEADY_S = 1.0


class Trouble(Protocol):
    """Something that a daemon suffers from."""

    def begin(self, daemon: RunningDaemon) -> None:
        """From now on it has it."""
        ...

    def end(self) -> None:
        """All is as it was."""
        ...

    def forget(self) -> None:
        """Leave nothing of it behind; the daemon is gone."""
        ...


class Cell:
    """One trouble on one stage, played once.

    Args:
        victims: titles of the processes that are killed in turn.
        replaced_within_s: each of them; later the daemon must have said why not.
        lasts_s: how long the trouble lasts after the last kill.
    """

    def __init__(
        self,
        stage: Stage,
        trouble: Trouble,
        *,
        victims: Sequence[str] = VICTIMS,
        replaced_within_s: float = REPLACED_WITHIN_S,
        lasts_s: float = 0.0,
    ) -> None:
        self.outcome = Outcome()
        self._stage = stage
        self._trouble = trouble
        self._victims = victims
        self._replaced_within_s = replaced_within_s
        self._lasts_s = lasts_s
        self._clock = SystemClock()
        self._own_ports: set[int] = set()

    def play(self) -> Outcome:
        """What came of it."""
        try:
            self._play()
        except (AssertionError, OSError) as error:
            self.outcome.notes.append(f"ended early: {error!r}")
        self.outcome.errors = self._stage.daemon.errors
        return self.outcome

    def _play(self) -> None:
        stage, began = self._stage, self._clock.now()
        stage.deploy(replicas=2)
        self._is_so("all is normal before", self._replaced_within_s, self._is_well)
        before, files = self._counts(), self._files()
        load = stage.load("/", post_pause_s=0.1)
        try:
            self._trouble.begin(stage.daemon)
            if self._victims:
                self._is_so("the daemon answers", self._replaced_within_s, lambda: stage.says(bool))
            for title in self._victims:
                self._kill(title, before[title])
            block_for(self._lasts_s)
            self._put()
            ended = self._clock.now()
            self._trouble.end()
            # longer than it may: the table tells how long it was
            is_normal = self._is_normal
            self._is_so("all is normal again", 4 * NORMAL_WITHIN_S, lambda: self._counts() == before and is_normal())
            self.outcome.normal_after_s = self._clock.now() - ended
            stage.deploy(version=stage.version + 1)
            self._is_so("the numbers of processes are as before", NORMAL_WITHIN_S, lambda: self._counts() == before)
            self._is_so("nothing is left over", NORMAL_WITHIN_S, lambda: not self._left_over(files))
            self.outcome.notes += self._left_over(files)
        except BaseException:
            load.kill()
            raise
        self._judge(load)
        self.outcome.seconds = self._clock.now() - began

    def _files(self) -> dict[str, int]:
        """How many names lie where they come and go with processes."""
        settings = self._stage.daemon.settings
        return {path: _count(path) for path in (settings.socket_dir, work_dir(settings.state_dir))}

    def _left_over(self, before: dict[str, int]) -> list[str]:
        return [
            f"{path} holds {count} names, it held {before[path]}: {sorted(os.listdir(path))}"
            for path, count in self._files().items()
            if count > before[path]
        ]

    def _counts(self) -> dict[str, int]:
        return {title: len(self._stage.daemon.pids(title)) for title in VICTIMS}

    def _kill(self, title: str, count: int) -> None:
        daemon = self._stage.daemon
        living = sorted(daemon.pids(title))
        if not living:
            self.outcome.notes.append(f"there is no {title} left")
            return
        is_told = title == "replica" and self._stage.says(bool)
        victim = self._stage.idle() if is_told else living[0]
        others = set(daemon.pids(title)) - {victim}
        if title == "proxy":
            self._own_ports |= self._stage.ports_of(victim)
        self._stage.kill(victim)
        if not within(self._replaced_within_s, lambda: self._is_replaced(title, victim, others, count)):
            said = self._explanation()
            if said:
                self.outcome.explained.append(f"{title}: {said}")
            else:
                self.outcome.notes.append(f"{title} killed, neither replaced nor explained: {self._counts()}")

    def _is_replaced(self, title: str, victim: int, others: set[int], count: int) -> bool:
        pids = set(self._stage.daemon.pids(title)) - {victim}
        fresh = pids - others
        if len(pids) < count or not fresh or not self._is_well():
            return False
        if title != "fork server":
            return True
        # it is of use once it has built the application, and who cannot do that is there for a moment only
        block_for(_STEADY_S)
        stays = fresh <= set(self._stage.daemon.pids(title)) and self._is_well()
        return stays and self._stage.says(lambda status: not any(_messages(status)))

    def _explanation(self) -> str:
        try:
            status = self._stage.daemon.status()
        except OSError as error:
            if "ulimit -n" in str(error):
                return str(error)
            # nobody can ask: the daemon itself says it
            said = [line for line in self._stage.daemon.errors.splitlines() if line.startswith("servd: ")]
            return next((line for line in reversed(said) if "cannot" in line), "")
        return "; ".join(filter(None, (status["notice"], *_messages(status))))

    def _put(self) -> None:
        stage = self._stage
        body = {"applications": [stage.document(version=stage.version + 1)]}
        try:
            code, text = stage.daemon.ask("PUT", PUT, body)
        except OSError as error:
            code, text = 0, error
            if said := self._explanation():
                self.outcome.explained.append(f"PUT: {error}; {said}")
                return
        if code == 200:
            stage.version += 1
        elif code in (503, 507):
            self.outcome.explained.append(f"PUT: {str(text)[:100]}")
        else:
            self.outcome.notes.append(f"PUT answers {code}: {str(text)[:200]}")

    def _is_well(self) -> bool:
        return self._stage.says(lambda status: _is_well(status, self._stage))

    def _is_normal(self) -> bool:
        """All runs again by itself, and a document is accepted. One that had failed in the trouble asks for another."""
        stage = self._stage
        is_failed = stage.says(lambda status: status["applications"].get("work", {}).get("status") == "DEPLOY_FAILED")
        if not is_failed and (not self._is_well() or self._explanation()):
            return False
        body = {"applications": [stage.document(version=stage.version)]}
        try:
            return stage.daemon.ask("PUT", PUT, body)[0] == 200 and not is_failed
        except OSError:
            return False

    def _is_so(self, what: str, limit_s: float, fact: Callable[[], bool]) -> None:
        if not within(limit_s, fact):
            self.outcome.notes.append(f"not so within {limit_s} s: {what}; {self._counts()}, {self._explanation()}")

    def _judge(self, load: Load) -> None:
        self.outcome.counts = load.stop()
        self.outcome.judge(set(self._stage.begun()), self._own_ports)


def _count(path: str) -> int:
    """The door of a replica that lives does not count: it is there once somebody has come."""
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return 0
    return sum(not (name.endswith(LENDING_SUFFIX) and name.removesuffix(LENDING_SUFFIX) in names) for name in names)


def _messages(status: dict[str, Any]) -> list[str]:
    app = status["applications"].get("work")
    if app is None:
        return ["the application is gone"]
    return [app["message"], *(deployment["message"] for deployment in app["deployments"].values())]


def _is_well(status: dict[str, Any], stage: Stage) -> bool:
    """Whether the application runs, whole, behind proxies that are well."""
    app = status["applications"].get("work")
    if app is None or app["status"] != "RUNNING" or not proxies_are_well(status, stage):
        return False
    work = app["deployments"]["work_Work"]
    return [r["state"] for r in work["replicas"]] == ["RUNNING"] * stage.replicas


def within(limit_s: float, fact: Callable[[], bool]) -> bool:
    """Whether it became true in time."""
    clock = SystemClock()
    deadline = clock.now() + limit_s
    while not fact():
        if clock.now() > deadline:
            return False
        block_for(0.05)
    return True
