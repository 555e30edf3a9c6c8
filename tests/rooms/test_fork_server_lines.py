"""The controller's lines to fork servers: what is asked before a line is up is asked once it is."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from servd.controller.fork_server_lines import ForkServerLines
from servd.ground.edition import own_edition
from servd.wire.build_messages import BuildResult
from servd.wire.codec import RecordReader, record
from servd.wire.messages import ForkServerHello
from servd.wire.policy_messages import PolicyAnswer, PolicyAsk


class Told:
    """Remembers answers; other news is none of its business."""

    def __init__(self) -> None:
        self.answers: list[PolicyAnswer] = []

    def policy_answered(self, answer: PolicyAnswer) -> None:
        self.answers.append(answer)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def an_ask(ask_id: str, deployment: str) -> PolicyAsk:
    return PolicyAsk(ask_id, "m:policy", "{}", "[]", deployment=deployment)


async def test_a_question_waits_for_the_greeting_of_its_fork_server(tmp_path: Path) -> None:
    asked: asyncio.Queue[PolicyAsk] = asyncio.Queue()
    hello = ForkServerHello("f", 1, BuildResult("b"), (), own_edition().text)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(record(hello))
        records = RecordReader()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for ask in records.feed(data):
                    asked.put_nowait(ask)
                    writer.write(record(PolicyAnswer(ask.ask_id, {ask.deployment: 2.0})))
        writer.close()

    told, path = Told(), str(tmp_path / "f")
    lines = ForkServerLines(asyncio.get_running_loop(), told)  # type: ignore[arg-type]
    assert not lines.ask("f", an_ask("0", "D"))
    lines.connect("f", path)
    # nobody listens yet; the later question of a deployment is the one that counts
    for ask in (an_ask("1", "D"), an_ask("2", "E"), an_ask("3", "D")):
        assert lines.ask("f", ask)
    async with asyncio.timeout(10):
        async with await asyncio.start_unix_server(speak, path):
            assert {(await asked.get()).ask_id for _ in range(2)} == {"2", "3"}
            assert lines.ask("f", an_ask("4", "D"))
            assert (await asked.get()).ask_id == "4"
            while len(told.answers) < 3:  # noqa: ASYNC110 - told by no event
                await asyncio.sleep(0.001)
            lines.close("f")
    assert asked.empty()
    assert not any(answer.error for answer in told.answers)


async def test_a_question_that_was_never_put_fails_with_its_fork_server(tmp_path: Path) -> None:
    told = Told()
    lines = ForkServerLines(asyncio.get_running_loop(), told)  # type: ignore[arg-type]
    lines.connect("f", str(tmp_path / "f"))
    assert lines.ask("f", an_ask("1", "D"))
    lines.close("f")
    assert told.answers == [PolicyAnswer("1", error="its fork server has ended")]
