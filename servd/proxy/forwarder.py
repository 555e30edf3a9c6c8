"""Sends requests of all lanes to replicas: finds the deployment, names requests, words failures."""

import asyncio
import math
import os
import re

from servd.calls.caller import Caller
from servd.calls.replica_peer import Router
from servd.calls.routes.table import RouteTable, decoded_path
from servd.exceptions import BackPressureError, RequestError
from servd.ground.clock import Clock, SystemClock
from servd.ground.settings import DEFAULT_FORWARDED_ALLOW_IPS
from servd.observability.access_log import Labels
from servd.observability.head_traces import RESPONSE, HeadTraces, TracedId
from servd.observability.journal import NOWHERE, Journal
from servd.observability.spans import Spans
from servd.proxy.forwarded_for import TrustedProxies
from servd.proxy.limits import Limits
from servd.proxy.probes import TEXT, Answer, answer_unrouted, is_probe
from servd.wire.http_answers import REQUEST_ID, own_lines, retry_after, text_for_clients
from servd.wire.messages import Routing
from servd.wire.records import REPLICA_TIMING, duration
from servd.wire.trace_context import TraceContext

CLIENT_GONE = 499
"""What a request counts as whose client went before the whole answer was written; nobody is sent this."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_ID_DIGITS = 32
_IDS_AT_ONCE = 512
_MAX_REMEMBERED = 2048
_MAX_REMEMBERED_PATH_BYTES = 256

_FEW_LARGE, _MOST_LARGE, _LEAST_LARGE, _VAIN = 2, 16, -64, 8
"""A connection goes with a request after two large answers. One that went in vain costs as much as a few others gain."""

METHODS = {name.encode(): name for name in ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH")}


class Target:
    """Where requests of one path go.

    prefix: the route's; router: of its ingress deployment; limit_s: time limit by configuration, None = none.
    path, query: of the URL it was remembered for. labels: of its requests in the journal.
    is_lent_early: most of its last answers were large, so the client's connection goes with the request.
    """

    __slots__ = ("_large", "app", "is_lent_early", "labels", "limit_s", "path", "prefix", "query", "router")

    def __init__(self, prefix: str, app: str, router: Router, limit_s: float | None) -> None:
        self.prefix = prefix
        self.app = app
        self.router = router
        self.limit_s = limit_s
        self.labels: Labels = (prefix, app, router.deployment, "")
        self.path = self.query = b""
        self.is_lent_early = False
        self._large = 0

    def note_large(self) -> None:
        """An answer was large."""
        self._large = min(self._large + 1, _MOST_LARGE)
        self.is_lent_early = self._large >= _FEW_LARGE

    def note_lent_in_vain(self) -> None:
        """The connection went with the request, and the answer was small."""
        self._large = max(self._large - _VAIN, _LEAST_LARGE)
        self.is_lent_early = self._large >= _FEW_LARGE

    def __repr__(self) -> str:
        return f"Target({self.prefix} -> {self.router.deployment})"


class Forwarder:
    """What the lanes have in common. Lives on `caller`'s loop.

    Attributes:
        targets: remembered targets by raw path; look here first, then ask `resolve`.
        usual_targets: remembered targets by whole URL, those without a time limit.
        tail: `server` and `date` header lines of a response of this second.
        journal: where requests are noted.
        trusted: proxies in front whose word about a client counts.
        traces: of requests that are part of one. spans: what records them, None for nobody.
    """

    def __init__(
        self,
        caller: Caller,
        root_path: str,
        limits: Limits,
        clock: Clock | None = None,
        journal: Journal | None = None,
        trusted: TrustedProxies | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.caller = caller
        self.trusted = trusted or TrustedProxies(DEFAULT_FORWARDED_ALLOW_IPS, believes_host=False)
        self.limits = limits
        self.table = RouteTable(root_path)
        self.targets: dict[bytes, Target] = {}
        self.usual_targets: dict[bytes, Target] = {}
        self._labels: dict[Labels, Labels] = {}
        self._clock = clock or SystemClock()
        self.journal = journal or Journal(caller.loop, counts=False, clock=self._clock)
        self.traces = HeadTraces(spans)
        self._ids = b""
        self._next_id = 0
        self.tail = b""
        self.refresh_date()

    def __repr__(self) -> str:
        return f"Forwarder({self.table}, {self.caller})"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of everything here."""
        return self.caller.loop

    def apply_routing(self, routing: Routing) -> None:
        """Replace routes and targets; acknowledged by the caller."""
        self.table.update(routing.routes, routing.generation)
        self.caller.apply_routing(routing)
        self.targets.clear()
        self.usual_targets.clear()

    def refresh_date(self) -> None:
        """Renew `tail`; once a second."""
        self.tail = own_lines(int(self._clock.wall_time()))

    def resolve(self, raw_path: bytes) -> Target | None:
        """The target of a path; None = the proxy answers itself (`answer_unrouted`)."""
        if b"/-/" in raw_path or b"%" in raw_path:
            inner = self.table.inner_path(decoded_path(raw_path))
            if inner is not None and is_probe(inner):
                return None
        route = self.table.match(raw_path)
        if route is None:
            return None
        router = self.caller.router_of(route.deployment)
        limits = [limit for limit in (router.targets.request_timeout_s, self.limits.request_s) if limit]
        target = Target(route.prefix, route.app, router, min(limits) if limits else None)
        # one object per route, so that who compares them needs no second look
        target.labels = self._labels.setdefault(target.labels, target.labels)
        if len(raw_path) <= _MAX_REMEMBERED_PATH_BYTES:
            if len(self.targets) >= _MAX_REMEMBERED:
                self.targets.clear()
            self.targets[raw_path] = target
        return target

    def remember_url(self, url: bytes, path: bytes, query: bytes, target: Target) -> None:
        """Know the target of a whole URL the next time."""
        if target.limit_s is None and len(url) <= _MAX_REMEMBERED_PATH_BYTES:
            if len(self.usual_targets) >= _MAX_REMEMBERED:
                self.usual_targets.clear()
            usual = Target(target.prefix, target.app, target.router, None)
            usual.path, usual.query, usual.labels = path, query, target.labels
            self.usual_targets[url] = usual

    def answer_unrouted(self, raw_path: bytes, query: bytes) -> Answer:
        """The proxy's own answer to a path without a target."""
        return answer_unrouted(self.table, raw_path, query)

    def labels_of_unrouted(self, raw_path: bytes) -> Labels:
        """Labels of a request without a target: all unknown paths count together."""
        inner = self.table.inner_path(decoded_path(raw_path))
        return (inner, "", "", "") if inner is not None and is_probe(inner) else NOWHERE

    def timed(self, block: bytes, began: float, sent_at: float) -> bytes:
        """Header lines with one `Server-Timing`: waiting for a replica, the way to it and back, its own time.

        Args:
            block: of the response; the replica's figure is in it.
            sent_at: when the request was handed to its last replica; 0 = never.
        """
        total_ms = (self.journal.now() - began) * 1000
        before, found, rest = block.rpartition(REPLICA_TIMING)
        figure, _, after = rest.partition(b"\r\n") if found else (b"0", b"", rest)
        queue_ms = (sent_at - began) * 1000 if sent_at else total_ms
        route_ms = max(total_ms - queue_ms - float(figure), 0.0)
        return b"".join(
            (
                before,
                after,
                b"server-timing: queue;dur=",
                duration(queue_ms),
                b", route;dur=",
                duration(route_ms),
                b", replica;dur=",
                figure,
                b"\r\n",
            )
        )

    def request_id(self, given: bytes | None) -> bytes:
        """The id of a request: what the client gave if it is a decent one, else a random UUID."""
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        start = self._next_id
        digits = self._ids[start : start + _ID_DIGITS]
        if not digits:
            self._ids = os.urandom(_ID_DIGITS // 2 * _IDS_AT_ONCE).hex().encode()
            digits = self._ids[:_ID_DIGITS]
            start = 0
        self._next_id = start + _ID_DIGITS
        # version 4, variant 8
        return b"%b-%b-4%b-8%b-%b" % (digits[:8], digits[8:12], digits[13:16], digits[17:20], digits[20:])

    def named(
        self, special: dict[bytes, bytes], headers: list[tuple[bytes, bytes]]
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """The id of a request, and its headers without that which the client gave: the replica adds the one that counts."""
        given = special.get(REQUEST_ID)
        if given is None:
            return self.request_id(None), headers
        return self.request_id(given), [pair for pair in headers if pair[0] != REQUEST_ID]

    def traced(
        self,
        request_id: bytes,
        parent: TraceContext | None,
        method: str,
        target: Target | None,
        *,
        began: float,
        begins: bool,
    ) -> TracedId | None:
        """The id of a request of HTTP that is part of a trace; None for others. Arguments as of `HeadTraces.taken_in`."""
        route = None if target is None else target.prefix
        # other methods are whatever clients make up
        shown = method if method in METHODS.values() or method == "WEBSOCKET" else "HTTP"
        about = {"http.request.method": shown if shown != "WEBSOCKET" else "GET", "http.route": route}
        name = shown if route is None else f"{shown} {route}"
        return self.traces.taken_in(request_id, parent, name, about, began=began, begins=begins)

    def time_limit(self, target: Target, header: bytes | None) -> float | None:
        """Seconds that a request may take in all, None = no limit: the least of deployment, header and environment."""
        try:
            asked = float(header) if header is not None else 0.0
        except ValueError:
            asked = 0.0
        if not 0 < asked < math.inf:
            return target.limit_s
        return asked if target.limit_s is None else min(asked, target.limit_s)


def id_headers(request_id: bytes) -> list[tuple[bytes, bytes]]:
    """What answers say of their request: its id, and where in which trace it is if it is part of one."""
    pairs = [(b"x-request-id", bytes(request_id))]
    if type(request_id) is TracedId:
        pairs.append((RESPONSE, request_id.response))
    return pairs


def answer_failure(error: Exception) -> Answer:
    """The response to a request that failed before a response began."""
    status = error.status_code if isinstance(error, RequestError) else 500
    later = retry_after(status, error.retry_after_s if isinstance(error, BackPressureError) else None)
    block = TEXT if later is None else b"%bretry-after: %b\r\n" % (TEXT, later)
    return status, block, text_for_clients(str(error)).encode()


def answer_timeout(limit_s: float, stage: str) -> Answer:
    """The response to a request whose time limit passed."""
    text = f"The time limit of {limit_s:g} s passed while {stage}."
    return 408, TEXT, text.encode()
