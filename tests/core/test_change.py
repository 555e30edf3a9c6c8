"""Documents against the goal: what is taken over, what is refused and why."""

from dataclasses import replace

import pytest

from servd.controller.plan.change import (
    Situation,
    check_put,
    check_rollback,
    delete,
    delete_application,
    put,
    put_application,
    rollback,
    scale,
    start_instance,
)
from servd.controller.plan.goal import Goal, HttpGoal
from servd.documents.control_plane import ApplicationDocument, GoalDocument
from servd.documents.sent import HttpWish
from servd.exceptions import ConfigError
from servd.ground.states import DeployMode
from tests.core.build import HTTP, a_goal, an_app


def situation(**changes: object) -> Situation:
    fields: dict[str, object] = {
        "http": HTTP, "present": (), "deployed": (), "deployed_at": 5.0, "deploy_id": 7, **changes
    }  # fmt: skip
    return Situation(**fields)  # type: ignore[arg-type]


def document(*names: str, mode: DeployMode = DeployMode.MULTI_APP, **http: object) -> GoalDocument:
    apps = tuple(ApplicationDocument(name, import_path="m:a") for name in names)
    return GoalDocument(mode, HttpWish(**http), apps)  # type: ignore[arg-type]


def test_put_owns_the_whole_set() -> None:
    goal = put(a_goal(an_app("old")), document("a", "b"), HTTP, situation(), {})
    assert [app.name for app in goal.applications] == ["a", "b"]
    assert (goal.revision, goal.running, goal.mode) == (2, True, DeployMode.MULTI_APP)
    assert {app.deployed_at for app in goal.applications} == {5.0}


def test_a_put_of_today_owns_those_of_documents_alone() -> None:
    there = a_goal(an_app("old"), an_app("run", stored=None), an_app("both", stored=None), an_app("", stored=None))
    wish = replace(document("a", "both"), keeps_others=True)
    goal = put(there, wish, check_put(there, wish, situation()), situation(), {})
    assert [(app.name, app.deploy_id) for app in goal.applications] == [("run", 1), ("a", 7), ("both", 7)]


def test_a_document_may_not_take_the_prefix_of_one_that_stays() -> None:
    there = a_goal(an_app("run", stored=None, route_prefix="/x", route_prefix_given=True))
    rival = ApplicationDocument("a", import_path="m:a", route_prefix="/x", route_prefix_given=True)
    wish = replace(document(), applications=(rival,))
    check_put(there, wish, situation())
    with pytest.raises(ConfigError, match="'/x' is already used by application 'run'"):
        check_put(there, replace(wish, keeps_others=True), situation())


@pytest.mark.parametrize(
    ("option", "value", "fragments"),
    [
        ("host", "0.0.0.0", ["host", "127.0.0.1", "0.0.0.0"]),
        ("port", 8001, ["port", "8000", "8001"]),
        ("root_path", "/r", ["root path", "/r"]),
        ("location", "NoServer", ["location", "EveryNode", "NoServer"]),
    ],
)
def test_a_different_option_is_refused_while_applications_are_present(
    option: str, value: object, fragments: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_put(a_goal(), document("a", **{option: value}), situation(present={"a"}))
    assert all(fragment in str(caught.value) for fragment in [*fragments, "Shut down Serve"])


@pytest.mark.parametrize(("sent", "limit_s"), [(None, 4.0), (7.0, 7.0), (0.0, 0.0)])
def test_the_time_limit_of_all_requests_changes_at_any_time(sent: float | None, limit_s: float) -> None:
    here = situation(http=replace(HTTP, request_timeout_s=4.0), present={"a"})
    assert check_put(a_goal(), document("a", request_timeout_s=sent), here).request_timeout_s == limit_s


def test_without_applications_the_listener_moves() -> None:
    assert check_put(a_goal(), document(port=8001), situation()) == HttpGoal("127.0.0.1", 8001)


def test_head_only_is_every_node_but_is_shown_as_sent() -> None:
    http = check_put(a_goal(), document("a", location="HeadOnly"), situation(present={"a"}))
    assert http.location == "HeadOnly"


def test_options_left_out_never_conflict() -> None:
    there = HttpGoal("0.0.0.0", 9000, "/root", "HeadOnly")
    assert check_put(a_goal(), document("a"), situation(http=there, present={"a"})) == there


def test_v1_compares_host_and_port_only() -> None:
    wish = document("default", mode=DeployMode.SINGLE_APP, root_path="/r")
    goal = Goal(1, True, DeployMode.SINGLE_APP, HTTP)
    assert check_put(goal, wish, situation(present={"default"})).root_path == "/r"


@pytest.mark.parametrize("mode", [DeployMode.SINGLE_APP, DeployMode.MULTI_APP])
def test_versions_do_not_mix(mode: DeployMode) -> None:
    other = DeployMode.MULTI_APP if mode is DeployMode.SINGLE_APP else DeployMode.SINGLE_APP
    with pytest.raises(ConfigError) as caught:
        check_put(Goal(1, True, other, HTTP), document("default", mode=mode), situation())
    assert "ServeApplicationSchema" in str(caught.value)
    assert "ServeDeploySchema" in str(caught.value)


def test_options_are_refused_before_modes() -> None:
    with pytest.raises(ConfigError, match="HTTP option port"):
        check_put(Goal(1, True, DeployMode.SINGLE_APP, HTTP), document("a", port=1), situation(present={"a"}))


def test_two_deployments_with_one_full_name_are_refused() -> None:
    apps = (
        ApplicationDocument("a", deployments=({"name": "b_c"},)),
        ApplicationDocument("a_b", deployments=({"name": "c"},)),
    )
    with pytest.raises(ConfigError) as caught:
        check_put(Goal(), GoalDocument(DeployMode.MULTI_APP, HttpWish(), apps), situation())
    assert all(text in str(caught.value) for text in ("'a_b_c'", "'a'", "'a_b'"))


def test_run_adds_and_replaces_one_application() -> None:
    goal = put_application(a_goal(an_app("a")), ApplicationDocument("b"), HTTP, situation(), {})
    goal = put_application(goal, ApplicationDocument("a", import_path="new:app"), HTTP, situation(), {})
    assert [(app.name, app.document.import_path) for app in goal.applications] == [("a", "new:app"), ("b", "")]


def test_run_refuses_a_prefix_that_another_application_was_given() -> None:
    goal = a_goal(an_app("a", route_prefix="/x", route_prefix_given=True))
    with pytest.raises(ConfigError, match="'/x' is already used by application 'a'"):
        put_application(
            goal, ApplicationDocument("b", route_prefix="/x", route_prefix_given=True), HTTP, situation(), {}
        )


@pytest.mark.parametrize(("prefix", "taken"), [("/code", True), ("/x", False), (None, False)])
def test_run_refuses_a_prefix_that_the_code_of_another_application_has(prefix: str | None, taken: bool) -> None:
    goal, built = a_goal(an_app("a")), situation(prefixes={"a": "/code", "gone": "/x"})
    wish = ApplicationDocument("b", route_prefix=prefix, route_prefix_given=True)
    if taken:
        with pytest.raises(ConfigError, match="'/code' is already used by application 'a'"):
            put_application(goal, wish, HTTP, built, {})
    else:
        assert put_application(goal, wish, HTTP, built, {}).application("b") is not None
    moving = a_goal(an_app("a", route_prefix="/new", route_prefix_given=True))
    assert put_application(moving, wish, HTTP, built, {}).application("b") is not None


def test_delete_empties_the_goal_as_a_revision() -> None:
    assert delete(a_goal(an_app())) == Goal(revision=2)
    assert delete(Goal(5)) == Goal(5)


def test_delete_of_an_unknown_application_changes_nothing() -> None:
    goal = a_goal(an_app())
    assert delete_application(goal, "x") is goal
    assert delete_application(goal, "app").applications == ()


def test_start_makes_serve_run_once() -> None:
    goal = start_instance(Goal(), HTTP)
    assert (goal.running, goal.mode, goal.revision) == (True, DeployMode.UNSET, 1)
    assert start_instance(goal, HTTP) is goal


def test_a_rollback_brings_everything_back_but_the_counts_of_scale() -> None:
    first = put(Goal(), document("a", port=8000), HTTP, situation(), {"a": {"/dir": "/code/1"}})
    second = put(first, document("b"), HTTP, situation(), {})
    pinned = scale(first, "a", "D", 5)
    back = rollback(second, pinned, check_rollback(second, pinned, situation(present={"b"})), situation())
    assert (back.revision, back.mode, back.asked) == (3, DeployMode.MULTI_APP, HttpWish(port=8000))
    (app,) = back.applications
    assert (app.name, app.snapshots, app.scale, app.deploy_id) == ("a", {"/dir": "/code/1"}, {}, 7)


def test_a_rollback_to_nothing_empties_the_goal() -> None:
    goal = a_goal(an_app())
    assert check_rollback(goal, Goal(3), situation(present={"app"})) is None
    assert rollback(goal, Goal(3), None, situation()) == Goal(2)


def test_a_rollback_is_refused_as_a_put_is() -> None:
    goal = a_goal(an_app())
    single = put(Goal(), document("default", mode=DeployMode.SINGLE_APP), HTTP, situation(), {})
    with pytest.raises(ConfigError, match="ServeApplicationSchema"):
        check_rollback(goal, single, situation(present={"app"}))
    elsewhere = put(Goal(), document("a", port=9000), HttpGoal("127.0.0.1", 9000), situation(), {})
    with pytest.raises(ConfigError, match="port"):
        check_rollback(goal, elsewhere, situation(present={"app"}))
    # options that the document had not sent are not compared
    flags = put(Goal(), document("a"), HttpGoal("127.0.0.1", 9000), situation(), {})
    assert check_rollback(goal, flags, situation(present={"app"})) == HTTP


def test_the_time_of_idle_connections_may_change_while_applications_run() -> None:
    http = check_put(a_goal(an_app()), document("a", keep_alive_timeout_s=5.0), situation(present=("app",)))
    assert http == replace(HTTP, keep_alive_timeout_s=5.0)
    # not sent it stays, null gives it back to the daemon
    later = situation(http=http, present=("app",))
    assert check_put(a_goal(an_app()), document("a"), later) == http
    assert check_put(a_goal(an_app()), document("a", keep_alive_timeout_s=0.0), later) == HTTP
