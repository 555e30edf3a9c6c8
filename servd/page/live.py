"""The pages that are open: what is new is found once for all of them, and only while there is one.

How this works: a page is told what differs from what it was told before, as soon as it has taken that. So one that is slow is
told less often, and nothing waits for it here. One that takes nothing at all for a while is dropped.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from servd.ground.clock import Clock
from servd.page.rows import Rows, difference, event

MOST_PAGES = 64
PERIOD_S = 2.0
LEAST_REST_S, MOST_REST_S = 0.5, 5.0
"""Between two looks, however much happens, and however long a look takes."""
BEAT_S = 15.0
"""Something is sent at least that often, so that both ends notice when the other has gone."""
STUCK_S = 30.0
"""So long a page may take for what it was sent."""
SHARE = 0.015
"""At most so much of a core is spent on finding what is new."""

_BEAT = event("beat", 0)

logger = logging.getLogger(__name__)


class OpenPage:
    """One that is open. abort: ends its connection at once. told: what it knows; None before the first time.

    sent_at: since when it has not come for more, None while it waits for some (monotonic seconds).
    """

    def __init__(self, abort: Callable[[], object]) -> None:
        self._abort = abort
        self.told: Rows | None = None
        self.told_at = 0.0
        self.sent_at: float | None = None
        self.news = asyncio.Event()
        self.is_over = False

    def __repr__(self) -> str:
        return f"OpenPage({'over' if self.is_over else 'waits' if self.sent_at is None else 'takes what was sent'})"

    def end(self) -> None:
        """There is nothing more to come."""
        self.is_over = True
        self.news.set()

    def drop(self) -> None:
        """It is over, and what was sent may get lost."""
        self.end()
        self._abort()


class OpenPages:
    """All that are open.

    Args:
        rows: gives what there is to show now.
        changed: waits until there is another version than this one, at most so many seconds; gives the version.
    """

    def __init__(self, rows: Callable[[], Rows], changed: Callable[[int, float], Awaitable[int]], clock: Clock) -> None:
        self._rows = rows
        self._changed = changed
        self._clock = clock
        self._pages: set[OpenPage] = set()
        self._shown: Rows = {}
        self._before: Rows = {}
        self._whole = self._step = b""
        self._took_s = 0.0
        self._showing: asyncio.Task[None] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"OpenPages({len(self._pages)} open, {len(self._shown)} rows)"

    @property
    def are_too_many(self) -> bool:
        """Whether no other one can be opened."""
        return len(self._pages) >= MOST_PAGES or self._is_closed

    def open(self, abort: Callable[[], object]) -> OpenPage:
        """Another one; `close` it in the end. abort: ends its connection at once."""
        if self._showing is None:
            self._look()
            self._showing = asyncio.get_running_loop().create_task(self._show())
            self._showing.add_done_callback(self._shown_no_more)
        page = OpenPage(abort)
        self._pages.add(page)
        page.news.set()
        return page

    def close(self, page: OpenPage) -> None:
        """Somebody looks no more. After the last one nothing is looked for."""
        page.end()
        self._pages.discard(page)
        if not self._pages and self._showing is not None:
            self._showing.cancel()
            self._showing = None

    def end(self) -> None:
        """End them all, and open none any more."""
        self._is_closed = True
        for page in list(self._pages):
            self.close(page)

    async def next(self, page: OpenPage) -> bytes:
        """What is to be sent to a page that has taken all before; b"" when it is over."""
        page.sent_at = None
        if not page.is_over:
            await page.news.wait()
            page.news.clear()
        if page.is_over:
            return b""
        data = self._since(page.told)
        page.told = self._shown
        page.told_at = page.sent_at = self._clock.now()
        return data

    def _since(self, told: Rows | None) -> bytes:
        if told is None:
            self._whole = self._whole or event("all", self._shown)
            return self._whole
        if told is self._shown:
            return _BEAT
        return self._step if told is self._before else _some(told, self._shown)

    async def _show(self) -> None:
        version = 0
        while True:
            version = await self._changed(version, PERIOD_S)
            self._look()
            now = self._clock.now()
            for page in list(self._pages):
                if page.told is not self._shown or now - page.told_at >= BEAT_S:
                    page.news.set()
                if page.sent_at is not None and now - page.sent_at > STUCK_S:
                    page.drop()
            await asyncio.sleep(min(max(LEAST_REST_S, self._took_s / SHARE), MOST_REST_S))

    def _shown_no_more(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        # our bug: whoever looks is told by the answer to the next page
        logger.error("page_not_shown", exc_info=error)
        self._showing = None
        for page in list(self._pages):
            self.close(page)

    def _look(self) -> None:
        began_at = self._clock.now()
        found = self._rows()
        if found != self._shown:
            # what most pages need now
            self._step = _some(self._shown, found) if self._pages else b""
            self._before, self._shown, self._whole = self._shown, found, b""
        self._took_s = self._clock.now() - began_at


def _some(told: Rows, shown: Rows) -> bytes:
    changed, gone = difference(told, shown)
    return event("some", {"set": changed, "gone": gone})
