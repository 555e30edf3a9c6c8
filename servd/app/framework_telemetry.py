"""What FastAPI tells OpenTelemetry of each request by itself, from 0.165 on at the latest, where that is for nobody.

To trace a request of which nothing is recorded takes FastAPI longer than a small handler, and to find out that there is nobody to
tell, 3.7 us: OpenTelemetry's API looks into the environment, thrice, as long as nobody is set up.
"""

import sys
from collections.abc import Callable, MutableMapping
from typing import Any

from servd.calls.request_context import current_request
from servd.ground.clock import SystemClock
from servd.observability import spans

_KEY = "fastapi.telemetry"
"""Where FastAPI keeps what it tells of a request, in its scope; there already, it does not begin. A module of its, too."""

_kinds: list[Callable[[], list[type]]] = []
_own_counts: list[int] = []
"""Subclasses of each class of providers that the API has, and how many of them are the API's."""
_LOOK_EVERY_S = 0.01
"""So much later whoever is set up is told of requests: to look for him at each would take a sixtieth of a small handler."""
_nobody_until = 0.0
_now = SystemClock().now


def leave_out(scope: MutableMapping[str, Any]) -> None:
    """Keep FastAPI from telling of this request if nothing of it is recorded."""
    if (not _is_recorded()) if spans.leaves_frameworks_out else _is_nobody_there():
        scope[_KEY] = None


def _is_recorded() -> bool:
    trace = current_request.get().trace
    return trace is not None and trace.is_sampled


def _is_nobody_there() -> bool:
    """Whether there is no class in this process of which a provider could be: none but the API's own, which do nothing."""
    global _nobody_until
    now = _now()
    if now < _nobody_until:
        return True
    if not _kinds:
        if _KEY not in sys.modules:
            return False
        _find_kinds()
    if [len(subclasses()) for subclasses in _kinds] != _own_counts:
        return False
    _nobody_until = now + _LOOK_EVERY_S
    return True


def _find_kinds() -> None:
    from opentelemetry import _logs, metrics, trace

    homes = tuple(module.__name__ for module in (trace, metrics, _logs))
    kinds: list[Any] = [trace.TracerProvider, metrics.MeterProvider, _logs.LoggerProvider]
    for kind in kinds:
        own: list[Any] = [one for one in kind.__subclasses__() if _is_in(one.__module__, homes)]
        _kinds.append(kind.__subclasses__)
        _own_counts.append(len(own))
        kinds.extend(own)


def _is_in(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)
