"""The circle at work: news in, one plan a turn, actions out."""

import asyncio
import contextlib
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Collection

from servd.controller.executor import Executor
from servd.controller.fact_store import FactStore
from servd.controller.plan import actions, events
from servd.controller.plan.goal import Goal
from servd.controller.plan.observed import Observed
from servd.controller.plan.reconciler import turn
from servd.controller.shown.status import next_visible_change
from servd.daemon.edition_watch import EditionWatch
from servd.daemon.upgrade import Upgrader
from servd.documents.controller_views import ControllerHealth, Spread, UpgradeOffer
from servd.exceptions import UpgradeError
from servd.ground.clock import Clock
from servd.ground.edition import edition_of, own_edition
from servd.ground.process import resident_bytes
from servd.ground.settings import Settings

logger = logging.getLogger(__name__)

TURNS_MEASURED = 100
_LONG_TURN_S = 0.005
_LONGEST_REST_S = 0.1


class Circle:
    """Brings the world to the goal, turn by turn. Its heirs change the goal, while they hold `_changing`.

    has_planned: set after the first turn.

    Args:
        goal: in force, as `data_plane.boot` gives it.
        on_failure: called when a turn failed: a bug, the process must end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        goal: Goal,
        observed: Observed,
        facts: FactStore,
        on_failure: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._goal = goal
        self._observed = observed
        self._facts = facts
        self._on_failure = on_failure
        self._executor: Executor | None = None
        self._events: list[events.Event] = []
        self._turn_is_due = False
        self._must_plan = False
        self.has_planned = asyncio.Event()
        self._changing = asyncio.Lock()
        self._editions: EditionWatch | None = None
        self._upgrader: Upgrader | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._is_woken = False
        self._visible_at = math.inf
        # larger than any that an earlier controller has given out, also when somebody has set the wall clock back
        self._version = int(clock.now() * 1000)
        self._changed = asyncio.Event()
        self._started_at = clock.now()
        self._turns = 0
        self._last_turn_at = self._started_at
        self._rests_until = 0.0
        self._turn_s: deque[float] = deque(maxlen=TURNS_MEASURED)
        self._memory_bytes = 0
        self.measure()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(revision {self._goal.revision}, version {self._version})"

    def emit(self, event: events.Event) -> None:
        """Take news; the turn comes soon, together with what else arrives meanwhile, and none before the start. After a long one
        the next waits as long as that took.
        """
        self._events.append(event)
        self._take_news_soon()

    def _schedule(self) -> None:
        """Plan soon, whatever the news are."""
        self._must_plan = True
        self._take_news_soon()

    def _plan_now(self) -> None:
        """Plan before anybody is answered."""
        self._must_plan = True
        # before the start nobody acts, and the first plan is made there
        if self._executor is not None:
            self._turn()

    def _take_news_soon(self) -> None:
        # before the start there is nobody to act, and a plan that nobody carries out would count as carried out
        if self._executor is not None and not self._turn_is_due:
            self._turn_is_due = True
            rest_s = self._rests_until - self._clock.now()
            if rest_s > 0:
                self._loop.call_later(rest_s, self._turn)
            else:
                self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        began_at = self._clock.now()
        assert self._executor is not None
        try:
            self._turn_once()
            self._executor.after_turn()
        except Exception:
            # our bug: fail loudly, the daemon starts the next controller, and nothing that serves is touched
            logger.exception("turn_failed goal=%s", self._goal)
            self._on_failure()
        self._turns += 1
        self._last_turn_at = self._clock.now()
        took_s = self._last_turn_at - began_at
        self._turn_s.append(took_s)
        if took_s > _LONG_TURN_S:
            # with many processes a turn takes its time: one for the news of each would leave none to hear them
            self._rests_until = self._last_turn_at + min(took_s, _LONGEST_REST_S)

    def measure(self) -> None:
        """Look at what costs a look; to be called now and then."""
        # without a descriptor the last figure stands
        with contextlib.suppress(OSError):
            self._memory_bytes = resident_bytes()

    def health(self, epoch: float) -> ControllerHealth:
        """How this controller does; epoch: wall time minus monotonic time, seconds."""
        return ControllerHealth(
            at=epoch + self._clock.now(),
            started_at=epoch + self._started_at,
            last_turn_at=epoch + self._last_turn_at,
            turns=self._turns,
            turn=_spread(self._turn_s),
            tasks=len(asyncio.all_tasks(self._loop)),
            memory_bytes=self._memory_bytes,
        )

    def _turn_once(self) -> None:
        self._turn_is_due = False
        news, self._events = self._events, []
        now = self._clock.now()
        is_moved = [self._observed.apply(event, now) for event in news]
        if not self._must_plan and not any(is_moved):
            # signs of life: the moment to look again stands, and with many processes this is nearly all that is ever heard
            return
        self._must_plan = False
        plan = turn(self._goal, self._observed, self._settings, now, self._rng)
        changes = self._observed.take_changes()
        if changes:
            self._facts.save(changes)
        # who looks on need not know that policies were asked once more
        is_seen = self._is_woken and (not plan.actions or any(map(_is_told, plan.actions)))
        if changes or is_seen or now >= self._visible_at:
            self._note_change()
        self._is_woken = False
        self._log(plan, now)
        assert self._executor is not None
        self._executor.set_logging(self._goal.logging_config)
        for action in plan.actions:
            self._executor.execute(action)
        self._visible_at = next_visible_change(self._observed, now)
        self._wake_at(min(plan.wake_at, self._visible_at), now)
        self.has_planned.set()

    def _log(self, plan: actions.Plan, now: float) -> None:
        # counts that move republish, and policies are asked all the time: worth no line
        if any(_is_told(action) and not isinstance(action, actions.Publish) for action in plan.actions):
            wake_in_s = f"{plan.wake_at - now:.1f}" if plan.wake_at < math.inf else "never"
            logger.info("plan %s wake_in_s=%s", plan.summary(), wake_in_s)
        while self._observed.notes:
            logger.info("%s", self._observed.notes.popleft())

    def _wake_at(self, moment: float, now: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if moment < math.inf:
            # a little late rather than a little early: a turn before the moment would only plan the same wake-up
            self._wake = self._loop.call_later(max(moment - now, 0.0) + 0.001, self._woken)

    def _woken(self) -> None:
        self._is_woken = True
        self._schedule()

    def _note_change(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seen: int, timeout_s: float) -> int:
        """Wait until the version of the view differs from `seen` or the time is over; gives the current version."""
        deadline = self._clock.now() + timeout_s
        while self._version == seen and (left := deadline - self._clock.now()) > 0:
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                break
        return self._version

    async def _until(self, is_so: Callable[[], bool], deadline: float) -> None:
        while not is_so() and (left := deadline - self._clock.now()) > 0:
            await self.changed(self._version, left)

    def of_editions(self) -> str:
        """What differs between what runs and what is installed, "" if nothing does."""
        upgrade = self._observed.upgrade
        if upgrade is not None and not upgrade.is_over:
            return f"an upgrade to servd {edition_of(upgrade.edition)} is under way"
        return self._editions.notice() if self._editions is not None else ""

    async def prepare_upgrade(self, *, origin: str = "") -> UpgradeOffer:
        """Look whether the daemon can become the edition that lies in its place."""
        if self._upgrader is None:
            raise UpgradeError("this controller has no daemon that could become another edition")
        found, own = await self._upgrader.prepare(), own_edition()
        logger.info("audit upgrade=%s before=%s origin=%s", found.text, own.text, origin or "-")
        return UpgradeOffer(str(found), str(own), is_needed=found != own)

    async def begin_upgrade(self) -> None:
        """Become what was offered last; this process is ended on the way."""
        # no change of the goal is cut in two; those that wait for it end with their connections
        async with self._changing:
            if self._upgrader is not None:
                await self._upgrader.begin()


def _is_told(action: actions.Action) -> bool:
    return not isinstance(action, actions.AskPolicy)


def _spread(taken: Collection[float]) -> Spread:
    if not taken:
        return Spread()
    mean = sum(taken) / len(taken)
    # the library's module of statistics weighs more than this process should
    variance = sum((one - mean) ** 2 for one in taken) / len(taken)
    return Spread(mean, math.sqrt(variance), min(taken), max(taken))
