"""Whether all that serves is of one edition, and of the files that are on disk; in one line, with the way out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from servd.ground.clock import Clock
from servd.ground.edition import Edition, Stamp, edition_at, edition_of
from servd.wire.messages import CALLER, Hello

_LOOK_S = 2.0
_RESTART = "`servd stop && servd start` takes the new ones"
_UPGRADE = "`servd upgrade` takes the new ones"

logger = logging.getLogger(__name__)


class EditionWatch:
    """Compares the controller's edition with those of its processes and of the files that a next start would take.

    Args:
        stamp: of this process. is_told: somebody gave it; a daemon of before editions does not.
        hellos: gives the greetings of what is connected.
    """

    def __init__(self, stamp: Stamp, is_told: bool, clock: Clock, hellos: Callable[[], Iterable[Hello]]) -> None:
        self._stamp = stamp
        self._is_told = is_told
        self._clock = clock
        self._hellos = hellos
        self._look_at = 0.0
        self._notice = ""

    def __repr__(self) -> str:
        return f"EditionWatch({self._stamp.edition}, {self._notice or 'all the same'})"

    def notice(self) -> str:
        """What differs, "" if nothing does. Looks at most every 2 s."""
        now = self._clock.now()
        if now < self._look_at:
            return self._notice
        self._look_at = now + _LOOK_S
        others = Counter(edition_of(hello.edition) for hello in self._hellos() if hello.role != CALLER)
        found = notice_of(self._stamp, _edition_there(self._stamp.home), others, is_told=self._is_told)
        if found and found != self._notice:
            logger.warning("editions_differ %s", found)
        self._notice = found
        return found


def _edition_there(home: str) -> Edition | None:
    try:
        return edition_at(home)
    except OSError:
        # at this moment, or for good
        return None


def notice_of(stamp: Stamp, there: Edition | None, others: Counter[Edition], *, is_told: bool = True) -> str:
    """What differs between an edition, the files on disk (None: not to be read) and the processes of each edition."""
    own = stamp.edition
    said = []
    if not is_told:
        said.append(f"the daemon is of an older servd than its controller ({own}); {_RESTART}")
    elif there is None:
        said.append(f"servd's files in {stamp.home} cannot be read; this daemon runs {own}")
    elif there != own:
        way_out = _UPGRADE if there.protocol == own.protocol else _RESTART
        said.append(f"servd's files in {stamp.home} were replaced by {there}; this daemon runs {own}; {way_out}")
    for edition, count in sorted(others.items(), key=lambda item: item[0].text):
        if edition != own:
            said.append(f"{count} of its processes run {edition}, the controller {own}; {_RESTART}")
    return ". ".join(said)
