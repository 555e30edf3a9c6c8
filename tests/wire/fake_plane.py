"""A control plane without processes, behind the real admin server."""

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servd.daemon.unix_sockets import bind_unix
from servd.documents.control_plane import (
    ApplicationChange,
    ApplicationDocument,
    ApplicationView,
    ChangePlan,
    DeploymentChange,
    DeploymentView,
    GoalDocument,
    HttpView,
    InstanceView,
    ProxyView,
    Pruned,
    ReplicaView,
    RevisionView,
    check_match,
)
from servd.documents.controller_views import UpgradeOffer
from servd.documents.figure_views import DeploymentFigures, DeploymentHistory
from servd.documents.sent import HttpWish
from servd.exceptions import NoAnswerError, UnknownNameError
from servd.ground.states import (
    ApplicationStatus,
    DeploymentStatus,
    DeployMode,
    ProxyStatus,
    ReplicaState,
    RevisionOutcome,
    StatusTrigger,
)
from servd.observability.error_groups import ErrorBook
from servd.rest.access import AccessRules
from servd.rest.app import create_app, serve


def an_instance(**changes: Any) -> InstanceView:
    """A daemon on which Serve does not run."""
    view = InstanceView(
        revision=0,
        version=1,
        running=False,
        mode=DeployMode.UNSET,
        http=HttpView("127.0.0.1", 8000, "", "EveryNode", listening=True),
        proxies=(ProxyView("p1", 0, ProxyStatus.HEALTHY, 11, "a" * 32, "b" * 56),),
        applications=(),
        controller_pid=10,
        controller_actor_id="c" * 32,
        controller_worker_id="d" * 56,
        node_id="e" * 56,
        node_ip="127.0.0.1",
    )
    return replace(view, **changes)


def an_application(name: str = "default", **changes: Any) -> ApplicationView:
    """A running application with one deployment `D` of one replica."""
    replica = ReplicaView(f"{name}_D#aBcDeF", ReplicaState.RUNNING, 12, 1.5, "f" * 32, "0" * 56)
    deployment = DeploymentView(
        name=f"{name}_D",
        bare_name="D",
        status=DeploymentStatus.HEALTHY,
        status_trigger=StatusTrigger.CONFIG_UPDATE_COMPLETED,
        message="",
        config={"name": f"{name}_D"},
        target_num_replicas=1,
        replicas=(replica,),
    )
    view = ApplicationView(
        name=name,
        route_prefix="/",
        docs_path=None,
        status=ApplicationStatus.RUNNING,
        message="",
        last_deployed_time_s=1.25,
        config={"import_path": "m:a"},
        deployments=(deployment,),
    )
    return replace(view, **changes)


A_CHANGE = ChangePlan(
    0,
    {"port": (8000, 8001)},
    {
        "a": ApplicationChange(
            "changed",
            (),
            "",
            {
                "a_D": DeploymentChange("D", "restarted", ("ray_actor_options.num_cpus",), 1, 2),
                "a_E": DeploymentChange("E", "untouched", (), 1, 1),
            },
            {"/src/app.py": "changed"},
        ),
        "b": ApplicationChange("added", (), "not built yet", {}),
    },
)


AN_OFFER = UpgradeOffer("0.2.0+bbbb (protocol 1)", "0.1.0+aaaa (protocol 1)", is_needed=True)


def a_revision(number: int, *apps: str, mode: DeployMode = DeployMode.MULTI_APP, **http: Any) -> RevisionView:
    """A revision with these applications."""
    stored = {name: {"name": name, "import_path": f"m{number}:a"} for name in apps}
    return RevisionView(
        number, 1000.0 + number, f"PUT {number}", True, mode, HttpWish(**http), stored, RevisionOutcome.RAN
    )


@dataclass
class FakeFigures:
    """Gives what the test has put there."""

    found: dict[str, DeploymentFigures] = field(default_factory=dict)
    past: dict[str, DeploymentHistory] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def at(self) -> float:
        return 1000.0

    def deployments(self, app: str | None = None, name: str | None = None) -> dict[str, DeploymentFigures]:
        self.asked.append((app, name))
        return {key: one for key, one in self.found.items() if app in (None, one.app) and name in (None, one.name)}

    def history(
        self, app: str | None = None, name: str | None = None, since: float = 0.0
    ) -> dict[str, DeploymentHistory]:
        self.asked.append((app, name, since))
        return self.past


@dataclass
class FakePlane:
    """Takes every change and remembers it; `error` is raised instead, if set. `running_at`: views to show next."""

    instance: InstanceView = field(default_factory=an_instance)
    error: Exception | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    next_views: list[InstanceView] = field(default_factory=list)
    history: tuple[RevisionView, ...] = ()
    change: ChangePlan = field(default_factory=lambda: A_CHANGE)
    book: ErrorBook = field(default_factory=ErrorBook)
    figures: FakeFigures = field(default_factory=FakeFigures)
    offer: UpgradeOffer = field(default_factory=lambda: AN_OFFER)

    def view(self) -> InstanceView:
        return self.instance

    async def changed(self, seen: int, timeout_s: float) -> int:
        self.calls.append(("changed", seen, timeout_s))
        if self.next_views:
            self.instance = replace(self.next_views.pop(0), version=self.instance.version + 1)
        return self.instance.version

    def _take(self, *call: Any, if_match: str | None = None) -> int:
        if self.error is not None:
            raise self.error
        check_match(if_match, self.instance.revision)
        self.calls.append(call)
        self.instance = replace(self.instance, revision=self.instance.revision + 1)
        return self.instance.revision

    async def put(self, document: GoalDocument, *, if_match: str | None = None, origin: str = "") -> int:
        return self._take("put", document, origin, if_match=if_match)

    async def put_application(
        self,
        application: ApplicationDocument,
        *,
        http: HttpWish | None = None,
        if_match: str | None = None,
        origin: str = "",
    ) -> int:
        return self._take("put_application", application, http, origin, if_match=if_match)

    async def delete_application(self, name: str, *, if_match: str | None = None, origin: str = "") -> int:
        return self._take("delete_application", name, origin, if_match=if_match)

    async def plan(self, document: GoalDocument, *, if_match: str | None = None) -> ChangePlan:
        if self.error is not None:
            raise self.error
        return self.change

    async def scale(self, app: str, deployment: str, count: int, *, origin: str = "") -> None:
        view = self.instance.application(app)
        if view is None or deployment not in {d.bare_name for d in view.deployments}:
            raise UnknownNameError(f"there is no {app}/{deployment}")
        self.calls.append(("scale", app, deployment, count, origin))

    def revisions(self, limit: int) -> tuple[RevisionView, ...]:
        return self.history[::-1][:limit]

    def revision(self, number: int) -> RevisionView:
        for revision in self.history:
            if revision.revision == number:
                return revision
        raise UnknownNameError(f"there is no revision {number}")

    def last_that_ran(self) -> int | None:
        ran = [revision.revision for revision in self.history if revision.outcome is RevisionOutcome.RAN]
        return max((number for number in ran if number < self.instance.revision), default=None)

    async def rollback(self, number: int, *, if_match: str | None = None, origin: str = "") -> int:
        self.revision(number)
        return self._take("rollback", number, origin, if_match=if_match)

    async def prune(self, keep: int, *, dry_run: bool = False) -> Pruned:
        return Pruned((f"keep {keep}", "dry run") if dry_run else (f"keep {keep}",), 3 * 2**20)

    async def plan_rollback(self, number: int, *, if_match: str | None = None) -> ChangePlan:
        self.revision(number)
        return self.change

    async def stack(self, replica_id: str) -> str:
        if replica_id == "silent":
            raise NoAnswerError("replica silent did not answer")
        if replica_id not in {
            r.replica_id for a in self.instance.applications for d in a.deployments for r in d.replicas
        }:
            raise UnknownNameError(f"there is no replica {replica_id!r}")
        return f"stacks of {replica_id}"

    async def start_instance(self, http: HttpWish, *, origin: str = "") -> int:
        return self._take("start_instance", http, origin)

    async def prepare_upgrade(self, *, origin: str = "") -> UpgradeOffer:
        if self.error is not None:
            raise self.error
        self.calls.append(("prepare_upgrade", origin))
        return self.offer

    async def begin_upgrade(self) -> None:
        self.calls.append(("begin_upgrade",))

    async def metrics(self, is_todays: bool = False) -> str:
        return f"# TYPE {'ray_' if is_todays else ''}serve_num_http_requests counter\n"

    async def delete(self, *, if_match: str | None = None, origin: str = "") -> None:
        self._take("delete", origin, if_match=if_match)


class Server:
    """The admin server on a free port, on another one for clients of today, and on a Unix socket, in a thread of its own."""

    def __init__(self, plane: FakePlane, access: AccessRules, folder: Path) -> None:
        self.plane = plane
        self.unix_path = str(folder / "admin.sock")
        self.code_dir = folder / "code"
        self._app = create_app(plane, access, str(self.code_dir), plane.metrics, plane.book, plane.figures)
        self._tcp = socket.create_server((access.bind_host, 0))
        self._today = socket.create_server((access.bind_host, 0))
        self._unix = bind_unix(self.unix_path)
        self.port: int = self._tcp.getsockname()[1]
        self.today_port: int = self._today.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._shutdown = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve(self._app, [self._tcp, self._unix], self._shutdown, today=[self._today]))

    @contextmanager
    def running(self) -> Iterator["Server"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._shutdown.set)
            self._thread.join(10)
            assert not self._thread.is_alive()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        *,
        headers: dict[str, str] | None = None,
        unix: bool = False,
        today: bool = False,
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers by lower-case name, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.today_port if today else self.port, timeout=10)
        if unix:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(10)
            connection.sock.connect(self.unix_path)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read().decode()
        finally:
            connection.close()
