"""The last lines of log files: of replicas, living or gone, of proxies and of the controller."""

import asyncio
import glob
import logging
import os
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response

from servd.documents.control_plane import ControlPlane, InstanceView
from servd.exceptions import ConfigError
from servd.ground.clock import SystemClock, local_stamp
from servd.ground.names import in_file_name
from servd.observability.log_lines import Wish
from servd.observability.log_tail import TailLine, tail
from servd.rest import shapes
from servd.rest.exchange import Resource, json_answer, number_parameter

DEFAULT_LINES = 200
MOST_LINES = 2000


def logs_resource(plane: ControlPlane) -> Resource:
    """GET: the last lines; with `?application=`, `?deployment=`, `?replica=`, `?level=`, `?request=` only theirs."""

    async def get(request: Request) -> Response:
        wanted = request.query_params
        limit = int(min(max(number_parameter(request, "limit", DEFAULT_LINES), 0), MOST_LINES))
        wish = Wish(wanted.get("request", ""), _level(wanted.get("level", "")))
        view = plane.view()
        patterns = list(_patterns(view, wanted.get("application"), wanted.get("deployment"), wanted.get("replica")))
        lines, is_all = await asyncio.to_thread(_read, view.log_dir, patterns, wish, limit)
        answer: shapes.LogLines = {"lines": [_line(one) for one in lines], "is_all": is_all}
        return json_answer(answer)

    return {"GET": get}


def _level(name: str) -> int:
    rank = logging.getLevelNamesMapping().get(name.upper(), -1) if name else 0
    if rank < 0:
        raise ConfigError(
            f"query parameter level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, got {name[:80]!r}"
        )
    return rank


def _patterns(view: InstanceView, app: str | None, deployment: str | None, replica: str | None) -> Iterator[str]:
    """Glob patterns below the log directory."""
    if app is None and deployment is None and replica is None:
        yield "serve/*.log"
        return
    for one in view.applications:
        for known in one.deployments:
            if (app is None or one.name == app) and (deployment is None or known.bare_name == deployment):
                full = glob.escape(in_file_name(known.name))
                if replica is None:
                    yield f"serve/deployment_{full}_{full}#*.log"
                elif replica.rpartition("#")[0] == known.name:
                    tag = glob.escape(in_file_name(replica.rpartition("#")[2]))
                    yield f"serve/deployment_{full}_{full}#{tag}.log"
                    yield f"serve/deployment_{full}_{full}#{tag}.before-*.log"


def _read(log_dir: str, patterns: list[str], wish: Wish, limit: int) -> tuple[list[TailLine], bool]:
    found = {path for pattern in patterns for path in glob.glob(pattern, root_dir=log_dir)} if log_dir else set()
    paths = sorted((os.path.join(log_dir, path) for path in found), key=_changed_at, reverse=True)
    return tail(paths, wish, limit, local_stamp(SystemClock().wall_time() + 1))


def _changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _line(one: TailLine) -> shapes.LogLine:
    return {"time": one.time, "level": one.level, "source": one.source, "text": one.text}
