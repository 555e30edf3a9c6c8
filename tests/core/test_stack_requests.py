"""Who asks for the stacks of a replica hears at once that it has ended."""

import asyncio

import pytest

from servd.controller.stack_requests import StackRequests
from servd.exceptions import NoAnswerError
from servd.wire.messages import StackReport


async def test_a_replica_that_ends_is_not_waited_for() -> None:
    requests = StackRequests(asyncio.get_running_loop(), lambda _, __: True)
    first, second = (asyncio.ensure_future(requests.ask(name)) for name in ("a", "b"))
    await asyncio.sleep(0)
    requests.gone("a")
    with pytest.raises(NoAnswerError, match="replica a ended before it answered"):
        await asyncio.wait_for(first, 1.0)
    requests.answered(StackReport(2, "text"))
    assert await second == "text"
    # what comes too late is nobody's
    requests.answered(StackReport(1, "text"))
