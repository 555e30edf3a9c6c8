"""How access lines look: all that they are put together from, by the journal."""

import json
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from servd.ground.clock import local_stamp
from servd.ground.names import on_one_line
from servd.observability.log_file import LogFile
from servd.wire.trace_context import TraceContext

SHORT_TENTHS = 2000
"""Latencies below so many tenths of a millisecond are worded beforehand."""

_MOST_KNOWN = 2048
_KEPT_PATH_BYTES = 256
_SHOWN_PATH_BYTES = 2048
_SHOWN_CLIENT_LETTERS = 64

_Key = TypeVar("_Key")

Labels = tuple[str, str, str, str]
"""Route prefix, application, deployment (full name), pattern of the route that answered (the prefix before it); "" where a
request had none."""

Key = tuple[Labels, str, "int | str"]
"""Labels, method, and the HTTP status; or the name of one of gRPC, and in replicas "OK", "ERROR" or
"CANCELLED", the last of one that nobody waits for any more."""


def trace_words(trace_id: str, span_id: str) -> str:
    """Ids of a trace and of a span in it, as lines of text have them behind the request's id."""
    return f"trace_id={trace_id} span_id={span_id}"


def replica_fields(component: str, component_id: str) -> dict[str, str]:
    """What JSON lines of a replica have beside its id, under Ray Serve's names: its deployment's full name, and its letters."""
    deployment, _, letters = component_id.rpartition("#")
    return {"deployment": deployment, "replica": letters} if component == "replica" and deployment else {}


def _latency(tenths: int, is_json: bool) -> bytes:
    text = f"{tenths / 10:.1f}"
    return f'{text}ms", "latency_ms": {text}'.encode() if is_json else f"{text}ms".encode()


@cache
def short_latencies(*, is_json: bool) -> list[bytes]:
    """By tenths of a millisecond. Asked before a fork, all children share them."""
    return [_latency(tenths, is_json) for tenths in range(SHORT_TENTHS)]


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """File name and first line of a function, as log lines show them."""
    code = function.__code__
    return os.path.basename(code.co_filename), code.co_firstlineno


class AccessLog:
    """How access lines of one process look, and where they go.

    Args:
        component, component_id: as in the other lines of the file.
        place: file and line of the code that notes.
        show: is given the lines too.

    Attributes:
        latencies: by tenths of a millisecond, all below `SHORT_TENTHS`; others by `latency`.
        paths, sizes, parties: what `path`, `size` and `end_of` have worded before.
        end_line: the end of a line without a path.
    """

    def __init__(
        self,
        file: LogFile,
        component: str,
        component_id: str,
        place: tuple[str, int],
        show: Callable[[bytes], object] | None = None,
    ) -> None:
        self._file = file
        self._show = show
        self._component = component
        self._component_id = component_id
        self._place = place
        self.is_enabled = True
        self.set_style(is_json=False)

    def __repr__(self) -> str:
        return f"AccessLog({self._file}, {'on' if self.is_enabled else 'off'})"

    def set_style(self, *, is_json: bool) -> None:
        """Write JSON objects, or lines of text."""
        self.is_json = is_json
        self.paths: dict[bytes, bytes] = {}
        self.sizes: dict[int, bytes] = {}
        self.parties: dict[tuple[str, str], bytes] = {}
        if is_json:
            who = f', "process": {os.getpid()}, "component_name": {_quoted(self._component)}'
            who += f', "component_id": {_quoted(self._component_id)}'
            for name, value in replica_fields(self._component, self._component_id).items():
                who += f', "{name}": {_quoted(value)}'
            self._start = '{"levelname": "INFO", "asctime": "'
            self._before_id = who + ', "request_id": "'
            self.end_line, self._size = b"}\n", b', "bytes": %d'
        else:
            self._start = "INFO "
            self._before_id = on_one_line(f" {self._component} {self._component_id} ")
            self.end_line, self._size = b"\n", b" %dB"
        self.latencies = short_latencies(is_json=is_json)

    def start(self, second: int) -> str:
        """The begin of all lines of a wall clock's second."""
        return self._start + local_stamp(second)

    def until_id(self, start: str, second: int, millis: int) -> bytes:
        """What comes before the request id of all lines of a millisecond. start: of those of its second."""
        time = f"{start},{millis:03d}"
        if self.is_json:
            time += f'", "timestamp_ns": {second * 1000 + millis}000000'
        return f"{time}{self._before_id}".encode(errors="backslashreplace")

    def without_id(self, prefix: bytes) -> bytes:
        """What comes before `words` where no request id is known; prefix: what `until_id` gave."""
        return prefix if self.is_json else prefix[:-1]

    def words(self, key: Key) -> tuple[bytes, bytes, bytes]:
        """What follows the request id and comes before the latency, for all requests of a key.

        Then the same for those with a path: what comes before it, and after it.
        """
        (route, app, _, pattern), method, status = key
        name, line = self._place
        if not self.is_json:
            known = on_one_line("".join(f" {part}" for part in (route, app) if part))
            head = f"{known} {name}:{line} - {method} "
            return _encoded(f"{head}{status} "), _encoded(head), _encoded(f" {status} ")
        fields: dict[str, str | int] = {"route": pattern or route, "application": app, "filename": name, "lineno": line}
        head = '"' + "".join(f', "{field}": {_quoted(value)}' for field, value in fields.items() if value != "")
        message = f', "message": "{_quoted(method)[1:-1]} {status} '
        before = f'{head}, "method": {_quoted(method)}, "status": {_quoted(status)}, "path": "'
        return _encoded(head + message), _encoded(before), _encoded('"' + message)

    def traced(self, request_id: bytes, trace: TraceContext) -> bytes:
        """What stands in place of the id of a request that is part of a trace."""
        if self.is_json:
            return b'%b", "trace_id": "%b", "span_id": "%b' % (
                request_id,
                trace.trace_id.encode(),
                trace.span_id.encode(),
            )
        return b"%b %b" % (request_id, trace_words(trace.trace_id, trace.span_id).encode())

    def path(self, path: bytes) -> bytes:
        """A path as lines show it; a very long one is cut. Long ones are not kept: clients choose what they ask for."""
        text = path[:_SHOWN_PATH_BYTES].decode(errors="backslashreplace")
        shown = _encoded(_quoted(text)[1:-1] if self.is_json else on_one_line(text))
        return _keep(self.paths, path, shown) if len(path) <= _KEPT_PATH_BYTES else shown

    def size(self, sent_bytes: int) -> bytes:
        """How much was sent."""
        return _keep(self.sizes, sent_bytes, self._size % sent_bytes)

    def end_of(self, client: str, replica_id: str) -> bytes:
        """The end of a line, by who asked whom; "" = unknown. A very long client is cut, and not kept."""
        shown = client[:_SHOWN_CLIENT_LETTERS]
        if self.is_json:
            fields = {"client": shown, "replica": replica_id}
            text = "".join(f', "{field}": {_quoted(value)}' for field, value in fields.items() if value)
        else:
            text = on_one_line("".join(f" {part or '-'}" for part in (shown, replica_id)))
        end = _encoded(text) + self.end_line
        return _keep(self.parties, (client, replica_id), end) if shown == client else end

    def latency(self, tenths: int) -> bytes:
        """A latency in tenths of a millisecond. `latencies` holds the short ones."""
        return _latency(tenths, self.is_json)

    def tend(self) -> None:
        """See to the file where others write to it."""
        self._file.tend()

    def write(self, lines: bytes) -> None:
        """Append whole lines."""
        self._file.write(lines)
        if self._show is not None:
            self._show(lines)


def _quoted(value: str | int) -> str:
    return json.dumps(value)


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _keep(known: dict[_Key, bytes], key: _Key, value: bytes) -> bytes:
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = value
    return value
