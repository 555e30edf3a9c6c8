"""Whether the daemon can become the edition that lies where it was started from; and the order to do so."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from servd.daemon.program import copy_in
from servd.daemon.takeover import Handover
from servd.exceptions import UpgradeError
from servd.ground.edition import Edition, Stamp, edition_at
from servd.ground.settings import Settings

RESTART = "it must be restarted: `servd stop && servd start`"
_ANSWER_S = 0.1
"""For the answer to leave this process before the daemon ends it."""
_END_LIMIT_S = 1.0


class Upgrader:
    """Looks, tries, and lets the daemon become another edition.

    Args:
        stamp: of this process. is_told: somebody gave it; a daemon of before editions does not.
        prepare: tells the daemon edition and place; gives False if it is too old for it.
        begin: gives it the word.
    """

    def __init__(
        self,
        settings: Settings,
        stamp: Stamp,
        is_told: bool,
        prepare: Callable[[str, str], Awaitable[bool]],
        begin: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._stamp = stamp
        self._is_told = is_told
        self._prepare = prepare
        self._begin = begin
        self._trying = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Upgrader({self._stamp})"

    async def prepare(self) -> Edition:
        """Try the edition on disk, and tell the daemon of it; gives it. Nothing is tried if it is the one that runs.

        Raises:
            UpgradeError: it cannot be, and why; what runs goes on.
        """
        async with self._trying:
            own, home = self._stamp.edition, self._stamp.home
            try:
                found = await asyncio.to_thread(edition_at, home)
            except OSError as error:
                raise UpgradeError(f"servd's files in {home} cannot be read: {error}; {own} goes on") from error
            if self._is_told and found == own:
                return found
            self._check(found)
            code_dir = await self._copied()
            place = os.path.dirname(code_dir)
            if await asyncio.to_thread(edition_at, code_dir) != found:
                raise UpgradeError(f"servd's files in {home} changed meanwhile; ask again once they are whole")
            # loaded here: few controllers ever need it
            from servd.daemon.trial import try_edition

            await try_edition(place, found, self._sample())
            if not await self._prepare(found.text, place):
                raise UpgradeError(f"this daemon is of an older servd, which cannot become another one: {RESTART}")
            return found

    async def begin(self) -> None:
        """Give the daemon its word, and wait for the end that it brings; comes back only if it does not."""
        await asyncio.sleep(_ANSWER_S)
        self._begin()
        await asyncio.sleep(_END_LIMIT_S)

    def _check(self, found: Edition) -> None:
        own = self._stamp.edition
        if not self._is_told:
            raise UpgradeError(f"this daemon is of an older servd than its controller, {own}: {RESTART}")
        if found.protocol != own.protocol:
            raise UpgradeError(f"servd {found} does not understand what runs, {own}: {RESTART}")
        if self._stamp.code_dir == self._stamp.home or not os.path.isdir(self._stamp.code_dir):
            state_dir = self._settings.state_dir
            raise UpgradeError(f"there is no copy of what runs, {own}, in {state_dir} to go back to: {RESTART}")

    async def _copied(self) -> str:
        try:
            return await asyncio.to_thread(copy_in, self._settings.state_dir, self._stamp.home)
        except OSError as error:
            place = self._settings.state_dir
            raise UpgradeError(f"servd's files cannot be copied to {place}: {error}; the old ones go on") from error

    def _sample(self) -> str:
        """A handover as the daemon will write it, but for the numbers."""
        settings, edition = asdict(self._settings), self._stamp.edition.text
        return Handover(settings, self._stamp.home, edition, edition, -1, (-1, -1), (), (), (), (-1, -1)).text
