"""The contract's example exchanges, replayed against a real daemon: each `given` state is set up, unless it is there."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

EXAMPLES = Path(__file__).parent / "examples"
FRUIT = Path(__file__).parents[2] / "examples" / "fruit"
DEADLINE_S = 40.0
V1 = "/api/serve/deployments/"
V2 = "/api/serve/applications/"

IMPORT_GATE = "import os, time\nwhile os.path.exists({path!r}):\n    time.sleep(0.01)\n"
DELETE_GATE = "    def __del__(self):\n        while os.path.exists({path!r}):\n            time.sleep(0.01)\n\n"

HEX = {"node_id": 56, "worker_id": 56, "actor_id": 32}
TIMES = {"last_deployed_time_s", "deployment_timestamp", "start_time_s"}
OPEN_OBJECTS = re.compile(r"(controller_info|http_proxies\.[^.]+|replicas\.\d+)$")

pytestmark = pytest.mark.slow


def example(number: str) -> dict[str, Any]:
    (path,) = EXAMPLES.glob(f"{number}-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@dataclass
class Site:
    """A running daemon, zips of the examples, and gates that hold an import or an end."""

    folder: Path
    admin_port: int = field(default_factory=free_port)
    data_port: int = field(default_factory=free_port)
    other_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._done: list[str] | None = None
        """PUTs that the state comes from, if nothing was held back then and nothing has changed since."""
        self.import_gate = self.folder / "import.gate"
        self.delete_gate = self.folder / "delete.gate"
        self.zips = {
            "https://example.com/apps/fruit/HEAD.zip": self._zip("fruit", "fruit.py"),
            "https://example.com/apps/calculator/HEAD.zip": self._zip("calculator", "conditional_dag.py"),
        }

    def _zip(self, name: str, module: str) -> str:
        source = (FRUIT / module).read_text()
        gate = IMPORT_GATE.format(path=str(self.import_gate))
        # behind the docstring, which has to come first
        head, mark, rest = source.partition('"""\n\n')
        rest = re.sub(r"(?m)^(class \w+:\n)", lambda m: m[1] + DELETE_GATE.format(path=str(self.delete_gate)), rest)
        path = self.folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}-HEAD/{module}", head + mark + gate + rest)
        return f"file://{path}"

    def here(self, value: Any) -> Any:
        """An example's value with the URLs and ports of this site."""
        if isinstance(value, dict):
            return {key: self.here(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.here(item) for item in value]
        ports = {8000: self.data_port, 8001: self.other_port}
        if isinstance(value, int) and not isinstance(value, bool):
            return ports.get(value, value)
        if isinstance(value, str):
            for url, uri in self.zips.items():
                value = value.replace(url, uri)
            for port, own in ports.items():
                value = value.replace(str(port), str(own))
        return value

    def ask(self, request: dict[str, Any]) -> tuple[int, str, str]:
        """Status, content type and body."""
        port = self.data_port if request["plane"] == "data" else self.admin_port
        body = request.get("raw")
        if "json" in request:
            body = json.dumps(self.here(request["json"]))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S * 2)
        try:
            connection.request(request["method"], request["path"], body)
            response = connection.getresponse()
            if request["plane"] == "admin" and request["method"] != "GET" and response.status == 200:
                self._done = None
            return response.status, response.getheader("content-type", ""), response.read().decode()
        finally:
            connection.close()

    def admin(self, method: str, path: str) -> tuple[int, str, str]:
        return self.ask({"plane": "admin", "method": method, "path": path})

    def data(self, method: str, path: str, order: Any) -> Any:
        status, _, body = self.ask({"plane": "data", "method": method, "path": path, "json": order})
        assert status == 200, body
        return json.loads(body)

    def details(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.admin("GET", V2)[2])
        return found

    def put(self, number: str) -> None:
        status, _, body = self.ask(example(number)["request"])
        assert status == 200, body

    def settled(self) -> dict[str, Any]:
        """Details once no application is under way."""

        def answer() -> dict[str, Any] | None:
            details = self.details()
            busy = {"DEPLOYING", "DELETING"}
            return None if any(app["status"] in busy for app in details["applications"].values()) else details

        return until(answer)

    def set_up(self, given: str) -> None:
        """The state before an exchange, whatever was here."""
        if given == "any":
            return
        numbers, is_done, holds_import, holds_end = GIVEN[given]
        if self._done == numbers and not (holds_import or holds_end):
            if is_done:
                self.settled()
            return
        for gate in (self.import_gate, self.delete_gate):
            gate.unlink(missing_ok=True)
        assert self.admin("DELETE", V2)[0] == 200
        if holds_import and not holds_end:
            self.import_gate.touch()
        for number in numbers:
            if holds_end and number == numbers[-1]:
                self.settled()
                self.delete_gate.touch()
                self.import_gate.touch()
            self.put(number)
        if is_done:
            self.settled()
        self._done = None if holds_import or holds_end else numbers


# given -> (PUTs, wait until done, hold imports, hold the end of replicas from the last PUT on)
GIVEN: dict[str, tuple[list[str], bool, bool, bool]] = {
    "fresh daemon": ([], False, False, False),
    "fresh daemon, or after 10": ([], False, False, False),
    "right after 04": (["04"], False, True, False),
    "after 04": (["04"], False, False, False),
    "after 04, build done": (["04"], True, False, False),
    "after 04, or nothing running": (["04"], True, False, False),
    "after 20, build done": (["20"], True, False, False),
    "right after 11": (["11"], False, True, False),
    "after 13": (["11"], True, False, False),
    "after 11, builds done": (["11"], True, False, False),
    "after 13 (state 13)": (["11"], True, False, False),
    "right after 15a": (["11", "15a"], False, True, True),
}


def until(answer: Any) -> Any:
    """What `answer()` gives once that is neither None nor False; fails after a while."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = answer()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)  # between two looks at another process, which tells nobody


def differences(expected: Any, actual: Any, place: str = "") -> list[str]:
    """Where `actual` is not what the contract shows; samples are compared by form."""
    key = place.rpartition(".")[2]
    if key in HEX:
        return [] if re.fullmatch(f"[0-9a-f]{{{HEX[key]}}}", str(actual)) else [f"{place}: {actual!r}"]
    if key in TIMES and expected:
        is_time = isinstance(actual, float | int) and actual > 1.6e9
        return [] if is_time else [f"{place}: {actual!r} is no time"]
    if key == "pid":
        return [] if isinstance(actual, int) and actual > 1 else [f"{place}: {actual!r}"]
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _object_differences(expected, actual, place)
    if isinstance(expected, list) and isinstance(actual, list):
        found = [] if len(expected) == len(actual) else [f"{place}: {len(actual)} items, not {len(expected)}"]
        for index, (left, right) in enumerate(zip(expected, actual, strict=False)):
            found += differences(left, right, f"{place}.{index}")
        return found
    if isinstance(expected, str) and isinstance(actual, str):
        return [] if re.fullmatch(_pattern(expected), actual, re.DOTALL) else [f"{place}: {actual!r}, not {expected!r}"]
    same = expected == actual and isinstance(expected, bool) == isinstance(actual, bool)
    return [] if same else [f"{place}: {actual!r}, not {expected!r}"]


def _object_differences(expected: dict[str, Any], actual: dict[str, Any], place: str) -> list[str]:
    if place.endswith("http_proxies"):  # keyed by the node id, which is a sample
        assert all(re.fullmatch("[0-9a-f]{56}", node) for node in actual)
        expected = dict(zip(actual, expected.values(), strict=True))
    missing, extra = expected.keys() - actual.keys(), actual.keys() - expected.keys()
    found = [f"{place}: no {key}" for key in missing]
    if not OPEN_OBJECTS.search(place):
        found += [f"{place}: unexpected {key}" for key in extra]
    for key in expected.keys() & actual.keys():
        found += differences(expected[key], actual[key], f"{place}.{key}")
    return found


def _pattern(sample: str) -> str:
    """A sample string as a pattern: free texts, replica suffixes, node ids and pids may be any."""
    if re.fullmatch("<.*>", sample):
        names = re.findall(r"\b(?:fruit_stand|KiwiStand)\b", sample)
        return "".join(f"(?=.*{name})" for name in names) + ".*"
    pattern = re.escape(sample)
    pattern = re.sub(r"\\#[A-Za-z]{6}\b", r"\\#[A-Za-z]{6}", pattern)
    pattern = re.sub(r"[0-9a-f]{56}", "[0-9a-f]{56}", pattern)
    pattern = re.sub(r"controller_\d+", r"controller_\\d+", pattern)
    return re.sub(r"http_proxy_127\\\.0\\\.0\\\.1", r"http_proxy_[0-9.]+", pattern).replace(
        r"127\.0\.0\.1\.log", "[0-9.]+log"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    place = Site(folder)
    ports = ["--http-port", str(place.data_port), "--admin-port", str(place.admin_port)]
    command = [sys.executable, "-m", "servd.cli", "start", "--state-dir", str(folder / "state"), *ports]
    log = folder / "daemon.log"
    with open(log, "wb") as output:
        # 20 and 21 name no working_dir: the daemon's directory is the one of the fruit stand
        daemon = subprocess.Popen(command, cwd=FRUIT, stdout=output, stderr=output)

    def is_up() -> bool:
        assert daemon.poll() is None, log.read_text()
        try:
            return place.admin("GET", "/api/ray/version")[0] == 200
        except OSError:
            return False

    try:
        until(is_up)
        yield place
    finally:
        place.import_gate.unlink(missing_ok=True)
        place.delete_gate.unlink(missing_ok=True)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0, log.read_text()


def turn(number: str) -> tuple[int, bool, str]:
    """Those of one state come together, who changes it last."""
    found = example(number)
    given, request = found["given"], found["request"]
    changes = request["method"] != "GET" and found["response"]["status"] == 200
    return -1 if given == "any" else list(GIVEN).index(given), changes, number


NUMBERS = sorted({path.name.partition("-")[0] for path in EXAMPLES.glob("*.json")} - {"15b", "30"}, key=turn)


def check(site: Site, exchange: dict[str, Any]) -> list[str]:
    """Differences between the answer and the contract's."""
    status, content_type, body = site.ask(exchange["request"])
    expected = site.here(exchange["response"])
    if status != exchange["response"]["status"]:
        return [f"{status} {body}"]
    found = []
    if not content_type.startswith(expected.get("content_type", "")):
        found.append(f"content type {content_type}")
    if "json" in expected:
        found += differences(expected["json"], json.loads(body))
    if "body" in expected and body != expected["body"]:
        found.append(f"body {body!r}")
    found += [f"no {text!r} in {body!r}" for text in expected.get("text_contains", ()) if text not in body]
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_exchange(site: Site, number: str) -> None:
    found = example(number)
    site.set_up(found["given"])
    assert check(site, found) == []


def test_exchanges_of_the_data_plane(site: Site) -> None:
    found = example("30")
    site.set_up(found["given"])
    for exchange in found["exchanges"]:
        assert check(site, exchange) == [], exchange["request"]


def pids(details: dict[str, Any], app: str) -> dict[str, list[int]]:
    deployments = details["applications"][app]["deployments"]
    return {name: [replica["pid"] for replica in found["replicas"]] for name, found in deployments.items()}


@pytest.mark.parametrize(("number", "unchanged"), [("18", ("13",)), ("08", ("05", "07")), ("09", ("05", "07"))])
def test_a_refused_put_changes_nothing(site: Site, number: str, unchanged: tuple[str, ...]) -> None:
    site.set_up("after 13" if number == "18" else "after 04, build done")
    assert check(site, example(number)) == []
    for other in unchanged:
        assert check(site, example(other)) == []


@pytest.mark.parametrize("path", [V1, V2])
def test_after_delete_nothing_is_left(site: Site, path: str) -> None:
    site.set_up("after 04, build done")
    assert site.admin("DELETE", path)[::2] == (200, "")
    for number in ("01", "02", "03"):
        assert check(site, example(number)) == []
    socket.create_server(("127.0.0.1", site.data_port)).close()
    assert site.admin("DELETE", path)[::2] == (200, "")


def test_a_schema_error_does_not_start_serve(site: Site) -> None:
    site.set_up("fresh daemon")
    assert check(site, example("16")) == []
    assert check(site, example("03")) == []


def test_an_update_in_place_keeps_every_process(site: Site) -> None:
    site.set_up("after 13")
    before = site.details()
    site.put("14")
    after = site.settled()
    for app in ("fruit_stand", "calculator"):
        assert after["applications"][app]["status"] == "RUNNING"
        assert pids(after, app) == pids(before, app)
        assert after["applications"][app]["last_deployed_time_s"] > before["applications"][app]["last_deployed_time_s"]
    assert site.data("POST", "/fruit/", ["MANGO", 2]) == 18
    assert site.data("POST", "/fruit/", ["PEAR", 2]) == 8


def test_the_kept_application_keeps_its_processes(site: Site) -> None:
    site.set_up("after 13")
    before = pids(site.details(), "calculator")
    site.put("15a")
    lost = {"plane": "data", "method": "POST", "path": "/fruit/", "json": ["MANGO", 2]}
    until(lambda: site.ask(lost)[0] == 404)
    after = site.settled()
    assert list(after["applications"]) == ["calculator"]
    assert pids(after, "calculator") == before


def test_exchange_while_an_application_is_removed(site: Site) -> None:
    found = example("15b")
    site.set_up(found["given"])
    driver = "fruit_stand_DAGDriver"
    expected = found["response"]["json"]["applications"]["fruit_stand"]["deployments"]

    def answer() -> bool:
        # the driver has no end of the user's to wait for, so it may have gone already
        if driver not in site.details()["applications"]["fruit_stand"]["deployments"]:
            expected.pop(driver, None)
        return check(site, found) == []

    try:
        until(answer)
    except AssertionError:
        assert check(site, found) == []
