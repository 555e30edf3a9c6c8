"""The live page in a real Chromium, against answers that come late, out of order or never: what it shows in the end is so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servd.documents.control_plane import DeadReplicaView
from servd.ground.clock import SystemClock
from servd.ground.states import RevisionOutcome
from servd.observability.error_groups import ErrorGroup, ErrorsReport
from servd.page import live
from servd.rest.access import AccessRules
from tests.browser import Tab, a_browser, needs_chromium
from tests.wire.fake_plane import FakePlane, Server, a_revision, an_application, an_instance

pytestmark = [pytest.mark.long, needs_chromium]

STAGE = """
const quick = 20, interval = setInterval, timeout = setTimeout, send = fetch, Stream = EventSource;
window.setInterval = (run, ms) => interval(run, ms / quick);
window.setTimeout = (run, ms) => timeout(run, ms / quick);
const limit = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (ms) => limit(ms / quick);
// rule: what becomes of the requests whose path has the part: "fail", "hold" (until `release`), "" = nothing
window.rules = new Map();
window.held = [];
window.asked = [];
window.fetch = async (path, about) => {
  asked.push(path);
  for (const [part, rule] of rules) {
    if (!path.includes(part)) continue;
    if (rule === "fail") throw new TypeError("nobody is there");
    if (rule === "hold") await new Promise((go, stop) => {
      held.push(go);
      about.signal?.addEventListener("abort", () => stop(about.signal.reason));
    });
  }
  return send(path, about);
};
window.release = () => { rules.clear(); held.splice(0).forEach((go) => go()); };
window.streams = 0;
window.mayStream = true;
window.EventSource = function (path) {
  streams += 1;
  return mayStream ? new Stream(path) : Object.assign(new EventTarget(), { readyState: 0, close() {} });
};
EventSource.OPEN = Stream.OPEN;
"""
"""Time runs twenty times as fast for the page, and what it asks for comes when a test says so."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with a_browser(tmp_path_factory.mktemp("browser")) as found:
        found.call("Page.addScriptToEvaluateOnNewDocument", source=STAGE)
        yield found


@pytest.fixture
def plane() -> FakePlane:
    applications = (an_application("a"),)
    return FakePlane(an_instance(running=True, revision=1, applications=applications), history=(a_revision(1, "a"),))


@pytest.fixture
def server(plane: FakePlane, tmp_path: Path) -> Iterator[Server]:
    with Server(plane, AccessRules("127.0.0.1"), tmp_path).running() as running:
        yield running


@pytest.fixture
def page(tab: Tab, server: Server) -> Iterator[Tab]:
    tab.trouble.clear()
    tab.go(f"{server.url}/")
    tab.shows("1 (in force)", "#revisions")
    yield tab
    assert tab.trouble == []
    # nobody connects anew while the server ends
    tab.go("about:blank#")


def change(plane: FakePlane, **changes: Any) -> None:
    """Of the deployment of the one application."""
    [app] = plane.instance.applications
    [one] = app.deployments
    plane.instance = replace(
        plane.instance, applications=(replace(app, deployments=(replace(one, **changes),)),), version=1
    )


def test_nothing_is_said_of_what_is_not_known_yet(tab: Tab, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_PAGES", 0)
    tab.go(f"{server.url}/")
    tab.shows("not live", "#state")
    # everything was drawn some times
    tab.run("new Promise((go) => setTimeout(go, 30000))")
    assert "a" in tab.run("document.querySelector('#tables').innerText").split()
    assert "nothing is deployed" not in tab.run("document.body.innerText")
    tab.go("about:blank#")


def test_trouble_with_logs_is_over_when_it_is(page: Tab) -> None:
    page.run("document.querySelector('#log-follow').checked = true")
    page.click("Show")
    page.shows("No such line", "#log-note")
    page.run("rules.set('/logs', 'fail')")
    page.shows("nobody is there", "#log-note")
    page.run("rules.clear()")
    page.shows("No such line", "#log-note", 5.0)


def test_logs_are_asked_for_once_while_nobody_answers(page: Tab) -> None:
    page.run("rules.set('/logs', 'hold'), document.querySelector('#log-follow').checked = true")
    page.click("Show")
    page.run("new Promise((go) => setTimeout(go, 20000))")
    assert page.run("held.length") == 1
    page.run("release()")
    page.shows("No such line", "#log-note")


def test_what_is_never_answered_is_asked_anew(page: Tab) -> None:
    page.run("rules.set('/logs', 'hold'), document.querySelector('#log-follow').checked = true")
    page.click("Show")
    page.shows("no answer within 60 s", "#log-note", 10.0)
    page.run("rules.clear()")
    page.shows("No such line", "#log-note", 10.0)


def test_revisions_that_could_not_be_read_are_read_later(page: Tab, plane: FakePlane) -> None:
    page.run("rules.set('/revisions', 'fail')")
    asked = page.run("asked.length")
    plane.history = (*plane.history, a_revision(2, "a"))
    plane.instance = replace(plane.instance, revision=2, version=1)
    page.wait(f"asked.slice({asked}).some((path) => path.includes('/revisions'))")
    page.run("rules.clear()")
    page.shows("2 (in force)", "#revisions", 5.0)


def test_what_has_become_of_a_revision_is_told_whenever_it_is_known(page: Tab, plane: FakePlane) -> None:
    undecided = replace(a_revision(2, "a"), outcome=RevisionOutcome.UNDECIDED)
    plane.history = (*plane.history, undecided)
    plane.instance = replace(plane.instance, revision=2, version=1)
    page.shows("2 (in force)", "#revisions")
    plane.history = (plane.history[0], replace(undecided, outcome=RevisionOutcome.FAILED))
    page.shows("failed", "#revisions", 5.0)


def test_of_two_answers_the_one_to_the_later_question_stays(page: Tab, plane: FakePlane) -> None:
    before = "{revision: 1, last_that_ran: null, revisions: []}"
    page.run(
        f"window.late = new Promise((go) => window.answer = () => go(new Response(JSON.stringify({before})))),"
        " window.real = fetch, window.fetch = (path, about) => path.includes('/revisions')"
        " ? (window.fetch = real, late) : real(path, about)"
    )
    plane.instance = replace(plane.instance, revision=2, version=1)
    page.wait("fetch === real")
    plane.history = (*plane.history, a_revision(2, "a"), a_revision(3, "a"))
    plane.instance = replace(plane.instance, revision=3, version=2)
    page.shows("3 (in force)", "#revisions")
    page.run("answer(), new Promise((go) => setTimeout(go, 2000))")
    assert "3 (in force)" in page.run("document.querySelector('#revisions').innerText")


def test_who_closes_a_dialog_hears_that_it_has_failed(page: Tab, plane: FakePlane) -> None:
    page.run("rules.set('/applications/', 'hold')")
    page.click("Delete application a…")
    page.click("Delete", "dialog")
    page.press("Escape")
    # somebody else was quicker
    plane.instance = replace(plane.instance, revision=2, version=1)
    page.run("release()")
    page.shows("Delete application a: ", "#timeline")
    page.shows("Failed", "#timeline")


def test_a_plan_is_one_of_how_everything_is_now(page: Tab, plane: FakePlane) -> None:
    page.click("Scale a/D…")
    page.type("3")
    page.shows("1 to 3 replicas: 2 more are started.", "dialog")
    change(plane, target_num_replicas=5)
    page.shows("5 to 3 replicas: 2 finish what they have, then end.", "dialog")
    page.run("rules.set('/scale', 'hold')")
    page.click("Scale", "dialog")
    page.type("4")
    assert page.run("document.querySelector('#dialog-go').disabled"), "one is under way"
    plane.instance = replace(plane.instance, applications=(), version=2)
    page.shows("It is not there any more.", "dialog")
    page.run("release()")
    page.shows("there is no a/D", "dialog")
    assert page.run("document.querySelector('#dialog-go').disabled"), "there is nothing to scale"


def test_a_stream_that_begins_late_is_waited_for(page: Tab) -> None:
    page.run("mayStream = false, window.clock = Date.now, Date.now = () => clock() + 60000")
    page.shows("not connected", "#state")
    page.wait("streams === 2")
    page.run("Date.now = ((clock) => () => clock() + 1000)(Date.now), new Promise((go) => setTimeout(go, 20000))")
    assert page.run("streams") == 2


def test_a_clock_that_was_set_back_hides_no_silence(page: Tab) -> None:
    page.run("mayStream = false, window.clock = Date.now, Date.now = () => clock() - 3600000")
    page.wait("streams > 1", 5.0)


def test_every_change_has_its_line(page: Tab, plane: FakePlane) -> None:
    names = [f"b{number}" for number in range(160)]
    plane.instance = replace(plane.instance, applications=tuple(map(an_application, names)), version=1)
    page.shows("b159", "#apps")
    plane.instance = replace(plane.instance, applications=(), version=2)
    page.shows("Application b159 is gone", "#timeline")
    plane.instance = replace(plane.instance, applications=(an_application("c"),), version=3)
    page.shows("c", "#apps h3")
    plane.instance = replace(plane.instance, applications=(), version=4)
    page.shows("Application c is gone", "#timeline")
    page.shows("Application b159 is gone", "#timeline", 2.0)


def test_times_of_another_day_have_its_date(page: Tab, plane: FakePlane) -> None:
    dead = DeadReplicaView("a_D#x", 1, -9, 2.0, "", 1, (), "", start_time_s=page.run("Date.now() / 1000"))
    change(plane, recent_dead=(dead,))
    page.shows("a_D#x: signal 9", "#timeline")
    first = "document.querySelector('#timeline time').textContent"
    before = page.run(first)
    page.run(
        "window.Clock = Date, window.Date = class extends Clock {"
        " constructor(...at) { at.length ? super(...at) : super(Clock.now() + 86400000); } }"
    )
    page.wait(f"{first} !== {before!r} && {first}.endsWith({before!r})", 5.0)


def test_what_moves_keeps_the_focus(page: Tab, plane: FakePlane) -> None:
    def heard(number: int, at: float) -> None:
        group = ErrorGroup(f"e{number}", "E", f"a.py:{number} in f", f"E: {number}", "", "m", "/", 1, at, at)
        plane.book.heard("a", "D", ErrorsReport(f"r{at}", (group,)))

    heard(1, 1.0)
    heard(2, 2.0)
    plane.instance = replace(plane.instance, version=1)
    page.shows("E: 1", "#errors")
    page.run("[...document.querySelectorAll('#errors button')].find((one) => one.textContent === 'E: 1').focus()")
    heard(1, 3.0)
    page.wait("document.querySelector('#errors tbody button').textContent === 'E: 1'")
    assert page.run("document.activeElement.textContent") == "E: 1"


def test_a_clock_of_the_server_that_was_set_back_stops_no_plot(page: Tab, plane: FakePlane) -> None:
    asks = "asked.filter((path) => path.includes('/history'))"
    page.wait(f"{asks}.length > 3")
    assert page.run(f"{asks}.slice(-2).every((path) => path.includes('since'))")
    # that one stands still
    page.run("window.clock = performance.now.bind(performance), performance.now = () => 20 * clock()")
    page.wait(f"!{asks}.at(-1).includes('since')", 5.0)


def test_nothing_else_is_deleted_than_what_was_meant(page: Tab, plane: FakePlane) -> None:
    plane.instance = replace(plane.instance, applications=(an_application("."),), version=1)
    page.click("Delete application .…")
    page.click("Delete", "dialog")
    page.shows("No browser can ask for what has this name", "dialog")
    assert "delete_application" not in [name for name, *_ in plane.calls]


def test_ages_are_those_of_the_daemons_clock(page: Tab, plane: FakePlane) -> None:
    [replica] = plane.instance.applications[0].deployments[0].replicas
    change(plane, replicas=(replace(replica, start_time_s=SystemClock().wall_time() - 70),))
    page.run("window.clock = Date.now, Date.now = () => clock() - 3600000")
    page.wait("/7\\d s|8\\d s/.test(document.querySelector('.detail').innerText)", 10.0)


def test_another_edition_has_its_own_page(page: Tab, plane: FakePlane) -> None:
    page.run("window.isOld = true")
    page.click("Scale a/D…")
    plane.instance = replace(plane.instance, edition="9.9", version=1)
    page.shows("9.9", "header")
    assert page.run("window.isOld"), "who asks for something is not disturbed"
    page.press("Escape")
    page.wait("!window.isOld")
    page.shows("9.9", "header")
