"""A shop that is awake before its customers: a policy of its own keeps more replicas by day, and follows the load above that."""

import time
from typing import Any

from servd import deployment
from servd.config import AutoscalingContext


class ByHour:
    """By day at least `day` replicas, else `night`; more where the load wants them."""

    def __init__(self, day: int, night: int) -> None:
        self.day, self.night = day, night

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        is_day = 8 <= time.localtime(context.current_time).tm_hour < 20
        busy = context.total_num_requests / context.config.target_num_ongoing_requests_per_replica
        return max(self.day if is_day else self.night, busy), {"is_day": is_day}


@deployment
class Shop:
    async def __call__(self) -> str:
        return "welcome"


app = Shop.bind()
