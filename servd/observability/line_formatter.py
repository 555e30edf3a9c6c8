"""How a log record becomes a line.

Lines: level, time, component, component id, then request id, ids of trace and span, route and application when known, then
`file:line - message`.
"""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from servd.ground.clock import local_time
from servd.ground.names import on_one_line, without_controls
from servd.observability.access_log import replica_fields, trace_words
from servd.observability.described import ACCESS_MARK, bounded, extras_of, in_json, text_of
from servd.observability.tracebacks import texts_of

Fields = tuple[str, str, str, str, str, str]
RequestFields = Callable[[], Fields]
"""Gives request id, ids of trace and span, route prefix and application of the running request, and the pattern of the route that
answers it, each "" when unknown."""

_NO_FIELDS: Fields = ("", "", "", "", "", "")

_LIKE_A_LINE = re.compile(r'\n(?=[^ \n]+ \d{4}-\d\d-\d\d |\{"levelname": )')
"""In the midst of a message: what `servd logs` would take for the begin of a line."""


class LineFormatter(logging.Formatter):
    """Lines as the module says; with `is_json` JSON objects with the same fields."""

    converter = staticmethod(local_time)

    def __init__(
        self,
        component: str,
        component_id: str,
        request_fields: RequestFields | None,
    ) -> None:
        super().__init__()
        self._component = component
        self._component_id = component_id
        self._replica = replica_fields(component, component_id)
        self._request_fields = request_fields
        self.is_json = False
        self.has_access_lines = True
        self.attributes: tuple[str, ...] = ()

    def lets_pass(self, record: logging.LogRecord) -> bool:
        """Whether it is to be written: one that is marked as an access line goes with these."""
        return self.has_access_lines or not getattr(record, ACCESS_MARK, False)

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record, its traceback on the lines after it."""
        message = "\n".join(bounded(text.rstrip("\n")) for text in texts_of(record) if text)
        request = self._request_fields() if self._request_fields else _NO_FIELDS
        if self.is_json:
            return self._json(record, message, request)
        place_in_trace = trace_words(request[1], request[2]) if request[1] else ""
        about = (self._component, self._component_id, request[0], place_in_trace, *request[3:5])
        known = on_one_line(" ".join(filter(None, about)))
        place = f"{record.filename}:{record.lineno}" if record.lineno else record.filename
        level = on_one_line(record.levelname)
        further = "".join(f" {name}={on_one_line(bounded(text_of(value)))}" for name, value in self._further(record))
        return f"{level} {self.formatTime(record)} {known} {place}{further} - {_as_text(message)}"

    def _further(self, record: logging.LogRecord) -> list[tuple[str, Any]]:
        return [(name, _attribute(record, name)) for name in self.attributes]

    def _json(self, record: logging.LogRecord, message: str, request: Fields) -> str:
        fields = {
            "levelname": record.levelname,
            "asctime": self.formatTime(record),
            "timestamp_ns": int(record.created * 1e9),
            "process": record.process,
            "component_name": self._component,
            "component_id": self._component_id,
            **self._replica,
            "request_id": request[0],
            "trace_id": request[1],
            "span_id": request[2],
            "route": request[5] or request[3],
            "application": request[4],
            "filename": record.filename,
            "lineno": record.lineno or "",
            "message": message,
        }
        found = {key: value for key, value in fields.items() if value != ""}
        # last: the level comes first in each line, which is how lines are told from what goes on with them
        further = {
            name: in_json(value) for name, value in (*self._further(record), *extras_of(record)) if name not in found
        }
        return json.dumps({**found, **further})


def _attribute(record: logging.LogRecord, name: str) -> Any:
    value = getattr(record, name, None)
    # code that asked for "ray.serve" may have got "servd"; servd's own loggers have longer names
    is_alias = name == "name" and value == "servd" and logging.getLogger("ray.serve").name == value
    return "ray.serve" if is_alias else value


def _as_text(message: str) -> str:
    """The message in the terms of a file that people show on terminals, and programs read line by line.

    No control character is in it but tabs and ends of lines, and none of its lines looks like the begin of another record.
    """
    if message.isprintable():
        return message
    return _LIKE_A_LINE.sub("\n ", without_controls(message.replace("\r\n", "\n")))
