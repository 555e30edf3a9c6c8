"""A load generator: a process of its own that sends requests without pause and counts every one that fails.

`python -m tests.faults.load PORT PATH KEEP_ALIVE NEW PAUSE_S POST_PAUSE_S` runs until its standard input ends, then prints its
counts as JSON. Half of the workers send GET, half POST; KEEP_ALIVE workers stay on one connection as long as the server lets
them, NEW workers open one for each request.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

REQUEST_LIMIT_S = 30.0
_BODY = b"x" * 300
REPLICA = re.compile(r"#\w+")
"""A replica, as reasons name it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a 2xx that answers it. at: monotonic seconds; port: the client's own."""

    method: str
    kind: str
    reason: str
    at: float
    mark: str
    port: int


@dataclass(slots=True)
class Counts:
    """What a load generator has seen. sent: by "GET keep", "GET new", "POST keep", "POST new"."""

    sent: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    slowest_s: float = 0.0

    @property
    def total(self) -> int:
        """Requests sent."""
        return sum(self.sent.values())

    def failed(self, method: str) -> list[Failure]:
        """Failures of one method."""
        return [failure for failure in self.failures if failure.method == method]

    def reasons(self) -> dict[str, int]:
        """How often each kind of failure was seen."""
        return dict(Counter(f"{f.method} {f.kind}: {REPLICA.sub('#...', f.reason)[:90]}" for f in self.failures))

    def plus(self, other: "Counts") -> "Counts":
        """Both together."""
        sent = dict(Counter(self.sent) + Counter(other.sent))
        return Counts(sent, self.failures + other.failures, max(self.slowest_s, other.slowest_s))


class Load:
    """A running load generator.

    Args:
        keep, new: workers of each kind.
        pause_s, post_pause_s: between two requests of one.
    """

    def __init__(
        self,
        port: int,
        path: str = "/",
        *,
        keep: int = 4,
        new: int = 2,
        pause_s: float = 0.002,
        post_pause_s: float = 0.002,
    ) -> None:
        options = [str(value) for value in (port, path, keep, new, pause_s, post_pause_s)]
        command = [sys.executable, "-m", "tests.faults.load", *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        # it says so once it has got its first answers
        assert self._process.stdout.readline() == b"ready\n"

    def stop(self) -> Counts:
        """Let every worker finish its request; the counts."""
        out, _ = self._process.communicate(timeout=2 * REQUEST_LIMIT_S)
        said: dict[str, Any] = json.loads(out)
        return Counts(said["sent"], [Failure(**failure) for failure in said["failures"]], said["slowest_s"])

    def kill(self) -> None:
        """End it without its counts."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class BadAnswer(Exception):
    """What came is no proper answer."""


class Worker:
    """Sends one request after the other."""

    def __init__(self, number: int, port: int, path: str, method: str, kind: str, counts: Counts) -> None:
        self._name = f"{os.getpid()}-{number}"
        self._port = port
        self._path = path
        self._method = method
        self._kind = kind
        self._counts = counts
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._own_port = 0
        self.count = 0

    async def run(self, pause_s: float, is_over: asyncio.Event) -> None:
        """Until it is over."""
        loop = asyncio.get_running_loop()
        key = f"{self._method} {self._kind}"
        while not is_over.is_set():
            self.count += 1
            mark = f"{self._name}-{self.count}"
            began = loop.time()
            self._counts.sent[key] = self._counts.sent.get(key, 0) + 1
            try:
                async with asyncio.timeout(REQUEST_LIMIT_S):
                    await self._request(mark)
            except (OSError, EOFError, TimeoutError, BadAnswer) as error:
                reason = str(error) if isinstance(error, BadAnswer) else f"{type(error).__name__}: {error}"
                self._counts.failures.append(
                    Failure(self._method, self._kind, reason, loop.time(), mark, self._own_port)
                )
                self._close()
            self._counts.slowest_s = max(self._counts.slowest_s, loop.time() - began)
            await asyncio.sleep(pause_s)
        self._close()

    async def _request(self, mark: str) -> None:
        if self._line is None:
            self._own_port = 0
            self._line = await asyncio.open_connection("127.0.0.1", self._port)
            self._own_port = self._line[1].get_extra_info("sockname")[1]
        reader, writer = self._line
        body = _BODY if self._method == "POST" else b""
        closing = "Connection: close\r\n" if self._kind == "new" else ""
        writer.write(
            f"{self._method} {self._path} HTTP/1.1\r\nHost: load\r\nX-Mark: {mark}\r\n{closing}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        status, headers, text = await _read_answer(reader)
        if not 200 <= status < 300:
            raise BadAnswer(f"{status} {text[:200]!r}")
        if not text.startswith(f"{mark} {len(body)} "):
            raise BadAnswer(f"the answer is another's: {text[:200]!r}")
        if headers.get("connection", "") == "close":
            self._close()

    def _close(self) -> None:
        if self._line is not None:
            self._line[1].close()
            self._line = None


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip().lower()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body.decode()


async def _main(port: int, path: str, keep: int, new: int, pause_s: float, post_pause_s: float) -> None:
    counts = Counts()
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), is_over.set)
    kinds = ["keep"] * keep + ["new"] * new
    workers = [
        Worker(number, port, path, "GET" if number % 2 else "POST", kind, counts) for number, kind in enumerate(kinds)
    ]
    pauses = (post_pause_s, pause_s)
    tasks = [asyncio.create_task(worker.run(pauses[number % 2], is_over)) for number, worker in enumerate(workers)]
    # nobody gives an event for this
    while not all(worker.count > 1 for worker in workers):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    print("ready", flush=True)
    await asyncio.gather(*tasks)
    loop.remove_reader(sys.stdin.fileno())
    failures = [{name: getattr(failure, name) for name in Failure.__slots__} for failure in counts.failures]
    print(json.dumps({"sent": counts.sent, "failures": failures, "slowest_s": counts.slowest_s}))


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(_main(int(given[0]), given[1], int(given[2]), int(given[3]), float(given[4]), float(given[5])))
