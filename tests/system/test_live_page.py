"""The live page in a real Chromium, of a whole daemon: deploy, kill, scale, roll back, read a traceback, delete."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from servd.documents.control_plane import InstanceView
from servd.rest.access import AccessRules
from tests.browser import Tab, a_browser, needs_chromium
from tests.system.running_daemon import RunningDaemon, a_daemon, settings_in
from tests.wire.fake_plane import FakePlane, Server, an_application, an_instance

pytestmark = [pytest.mark.long, needs_chromium]

MARKUP = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
CODE = """
from servd import deployment

@deployment(num_replicas=2)
class Echo:
    async def __call__(self, request):
        print({said!r})
        if request.url.path.endswith("/boom"):
            raise ValueError({said!r})
        return "{version}"

app = Echo.bind()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with a_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(tab: Tab) -> Iterator[Tab]:
    """The browser, which must have met no trouble in the end, and asked nobody but the daemon."""
    tab.trouble.clear()
    tab.asked.clear()
    tab.size(1300, 900)
    yield tab
    tab.run("1")
    assert tab.trouble == []
    assert {urlsplit(url).hostname for url in tab.asked} <= {"127.0.0.1"}
    tab.go("about:blank#")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with a_daemon(settings_in(tmp_path)) as running:
        yield running


def url_of(daemon: RunningDaemon) -> str:
    return f"http://127.0.0.1:{daemon.settings.admin_port}/"


def deploy(daemon: RunningDaemon, folder: Path, version: str) -> None:
    (folder / "echo.py").write_text(CODE.format(said=MARKUP, version=version))
    daemon.deploy(folder)


def replicas(daemon: RunningDaemon) -> list[dict[str, Any]]:
    [one] = daemon.status()["applications"]["default"]["deployments"].values()
    return list(one["replicas"])


def test_an_operator_sees_everything_and_does_what_is_needed(page: Tab, daemon: RunningDaemon, tmp_path: Path) -> None:
    page.go(url_of(daemon))
    page.shows("nothing is deployed", "#applications")
    page.shows("live", "#state")
    code = tmp_path / "code"
    code.mkdir()
    deploy(daemon, code, "one")
    page.shows("RUNNING", "#apps")
    page.shows("2 of 2", "#apps")

    # what it uses, and how that was
    page.wait("/[1-9][0-9.]* MiB/.test(document.querySelector('#apps table').innerText)")
    page.wait("!!document.querySelector('.plot path[d^=M]')")
    assert page.run("[...document.querySelectorAll('th')].filter((head) => !head.textContent).length") == 0

    # a replica dies
    victim = replicas(daemon)[0]
    os.kill(victim["pid"], signal.SIGKILL)
    page.shows(f"{victim['replica_id']}: signal 9", "#timeline")
    page.click(f"Post-mortem of {victim['replica_id']}")
    page.shows("signal 9; pid", "dialog")
    page.press("Escape")
    page.wait("!document.querySelector('dialog').open")
    page.shows("2 of 2", "#apps")

    # scale, after a look at what it means
    page.click("Scale default/Echo…")
    page.shows("2 to 2 replicas: nothing is started or ended.", "dialog")
    page.type("3")
    page.shows("2 to 3 replicas: 1 more are started.", "dialog")
    assert len(replicas(daemon)) == 2, "nothing happens before it is confirmed"
    page.click("Scale", "dialog")
    page.shows("3 of 3", "#apps")

    # another version, and back
    deploy(daemon, code, "two")
    page.shows("2 (in force)", "#revisions")
    assert daemon.get("/")[1] == "two"
    page.click("Differences of revision 2")
    page.shows("the code may differ", "dialog")
    page.click("Close", "dialog")
    page.click("Roll back to revision 1…")
    page.shows("restarted", "dialog")
    page.click("Roll back", "dialog")
    page.shows("3 (in force)", "#revisions")
    daemon.wait_until_running()
    assert daemon.get("/")[1] == "one"

    # an error of the application, which is markup
    assert daemon.get("/boom")[0] == 500
    page.shows(MARKUP, "#errors")
    page.click(f"ValueError: {MARKUP}", "#errors")
    page.shows("Traceback (most recent call last)", "dialog pre")
    page.shows("echo.py", "dialog pre")
    request = page.run("document.querySelector('#dialog-body .buttons button').textContent")
    page.click(f"Logs of request {request}", "dialog")
    page.shows(MARKUP, "#log-lines")
    page.shows("user_code_failed", "#log-lines")
    assert page.run("document.images.length") == 0
    assert page.run("document.title") == "servd"

    # the stack of a replica
    living = replicas(daemon)[0]["replica_id"]
    page.click(f"Stack of {living}")
    page.shows("thread", "dialog pre")
    page.press("Escape")

    page.click("Delete application default…")
    page.shows("not served any more", "dialog")
    page.click("Cancel", "dialog")
    assert "default" in daemon.status()["applications"]
    page.click("Delete application default…")
    page.click("Delete", "dialog")
    page.shows("No application is deployed", "#applications")
    page.shows("Application default is gone", "#timeline")


def test_a_dialog_that_is_opened_as_soon_as_another_is_closed_is_filled(
    page: Tab, daemon: RunningDaemon, tmp_path: Path
) -> None:
    deploy(daemon, tmp_path, "one")
    page.go(url_of(daemon))
    page.click("Differences of revision 1")
    page.shows("Close", "dialog")
    # the browser tells of the end of the first one later
    page.run(
        "document.querySelector('#dialog-close').click(),"
        " document.querySelector('[aria-label=\"Differences of revision 1\"]').click()"
    )
    page.shows("+", "dialog pre")


def test_a_controller_that_is_killed_is_found_again(page: Tab, daemon: RunningDaemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "one")
    page.go(url_of(daemon))
    page.shows("2 of 2", "#apps")
    [pid] = daemon.pids("controller")
    os.kill(pid, signal.SIGKILL)
    page.shows("not connected", "#state")
    page.shows("live", "#state")
    os.kill(replicas(daemon)[0]["pid"], signal.SIGKILL)
    page.shows("signal 9", "#timeline")


def test_without_scripts_there_are_tables(page: Tab, daemon: RunningDaemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "one")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.call("Page.navigate", url=url_of(daemon))
        page.shows("2 of 2", "#applications table")
        page.shows(replicas(daemon)[0]["replica_id"])
        assert not page.run("document.querySelector('#rest').offsetParent")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


def test_with_a_token_there_is_a_login(page: Tab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame")
    with a_daemon(settings_in(tmp_path, admin_token_file=str(token))) as daemon:
        deploy(daemon, tmp_path, "one")
        page.go(url_of(daemon))
        page.wait("document.activeElement.id === 'token'")
        page.type("sesame")
        page.press("Enter")
        page.shows("not the token")
        page.wait("document.activeElement.id === 'token'")
        page.type("open sesame")
        page.press("Enter")
        page.shows("2 of 2", "#apps")
        assert page.run("document.cookie") == "", "no script can read it"
        page.click("Scale default/Echo…")
        page.type("1")
        page.click("Scale", "dialog")
        page.shows("1 of 1", "#apps")
        page.click("Log out")
        page.wait("!!document.querySelector('#token')")


def test_it_is_used_by_keyboard_and_read_aloud(page: Tab, daemon: RunningDaemon, tmp_path: Path) -> None:
    deploy(daemon, tmp_path, "one")
    page.go(url_of(daemon))
    page.shows("2 of 2", "#apps")
    toggle = "document.querySelector('.toggle')"
    assert page.run(f"{toggle}.getAttribute('aria-expanded')") == "true"
    for _ in range(40):
        page.press("Tab")
        if page.run(f"document.activeElement === {toggle}"):
            break
    page.press("Enter")
    page.wait(f"{toggle}.getAttribute('aria-expanded') === 'false'")
    assert page.run(f"document.activeElement === {toggle}"), "what is drawn anew keeps the focus"
    page.press("Enter")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    said = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    nameless = [
        role
        for role, name in said
        if role in ("button", "link", "textbox", "combobox", "checkbox", "image", "heading") and not name
    ]
    assert nameless == []
    assert {"main", "banner", "navigation", "table", "form", "status"} <= {role for role, _ in said}
    assert page.run("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [360, 768, 1300])
def test_it_fits_on_every_screen(page: Tab, tmp_path: Path, width: int) -> None:
    long = an_application("a" * 200, message="m" * 3000, standing_message="m" * 3000, route_prefix="/" + "r" * 200)
    plane = FakePlane(an_instance(running=True, applications=(long, an_application("b")), notice="n" * 500))
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as server:
        page.size(width, 800, is_phone=width < 500)
        page.go(f"{server.url}/")
        page.shows("RUNNING", "#apps")
        assert page.run("document.documentElement.scrollWidth") <= width
        boxes = "[...document.querySelectorAll('.app, .detail, dialog, .events, .notice')]"
        assert page.run(f"{boxes}.every((box) => box.getBoundingClientRect().right <= {width})")
        # nobody connects anew while the server ends
        page.go("about:blank#")


def a_large_instance() -> InstanceView:
    """50 applications of one deployment with 20 replicas each."""

    def grown(number: int) -> Any:
        app = an_application(f"app{number:02}")
        [one] = app.deployments
        [replica] = one.replicas
        many = tuple(replace(replica, replica_id=f"app{number:02}_D#{n:06}", pid=1000 + n) for n in range(20))
        return replace(app, deployments=(replace(one, replicas=many, target_num_replicas=20),))

    return an_instance(running=True, applications=tuple(grown(number) for number in range(50)))


def test_a_thousand_replicas_are_painted_within_a_second(page: Tab, tmp_path: Path) -> None:
    plane = FakePlane(a_large_instance())
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as server:
        taken = []
        # what else runs on this host may take the processor from one of them
        while len(taken) < 10 and min(taken, default=1000) >= 1000:
            page.go("about:blank#")
            page.go(f"{server.url}/")
            page.shows("20 of 20", "#apps")
            taken.append(page.wait(paint))
        assert min(taken) < 1000, taken
        assert page.run("document.querySelectorAll('.app').length") == 50
        page.click("D", "#apps")
        page.shows("app00_D#000019", "#apps")
        plane.instance = replace(plane.instance, revision=7)
        page.shows("revision 7", "header")
        page.go("about:blank#")
