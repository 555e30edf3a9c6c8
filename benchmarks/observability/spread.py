"""What samples of daemons say: medians, and between which values the true one lies. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SURE = 0.9
"""How probable it is at least that a median lies within its interval."""


@dataclass(frozen=True)
class Share:
    """A ratio: the median over pairs, and an interval for it, infinite where there are too few."""

    median: float
    low: float
    high: float

    def verdict(self, least: float) -> str:
        """Whether an aim is reached."""
        if self.low >= least:
            return "reached"
        return "MISSED" if self.high < least else "open"

    def __str__(self) -> str:
        interval = f"{self.low:.3f} to {self.high:.3f}" if math.isfinite(self.low) else "too few pairs for an interval"
        return f"{self.median:.3f} ({interval})"


def share(mine: Sequence[float], others: Sequence[float]) -> Share:
    """The ratio of samples that were taken in pairs, one after the other.

    The interval holds whatever the distribution is: the median of all that could be measured lies between the k-th and the k-th
    last of n values but for twice the chance of fewer than k heads in n throws of a coin.
    """
    ratios = sorted(a / b for a, b in zip(mine, others, strict=True))
    count, left_out, missed = len(ratios), 0, 2 * 0.5 ** len(ratios)
    if missed > 1 - SURE:
        return Share(statistics.median(ratios), -math.inf, math.inf)
    while True:
        missed += 2 * math.comb(count, left_out + 1) * 0.5**count
        if missed > 1 - SURE:
            return Share(statistics.median(ratios), ratios[left_out], ratios[-1 - left_out])
        left_out += 1
