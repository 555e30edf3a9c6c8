"""What gRPC asks of everything that neither opens a socket nor imports gRPC."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from servd.app.grpc_servicers import codecs_of
from servd.calls.grpc_services import applications_answer, healthz_answer, service_asked
from servd.compat.ray_generated import (
    HealthzRequest,
    ListApplicationsRequest,
    RayServeAPIServiceStub,
    fill_messages,
)
from servd.controller.goal_json import goal_from_json, goal_to_json
from servd.controller.plan import actions
from servd.controller.plan.change import Situation, check_put, put
from servd.controller.plan.data_plane import boot
from servd.controller.plan.differences import code_fields
from servd.controller.plan.goal import Goal, HttpGoal
from servd.documents.sent import HttpWish, top_level
from servd.exceptions import ConfigError, NoRouteError, ProtocolError, gRPCStatusError
from servd.grpc_util import RayServegRPCContext, code_of, gRPCInputStream
from servd.observability.journal import Series
from servd.observability.measures import grpc_families, http_families
from servd.proxy.grpc.table import GrpcTable
from servd.schema import parse_v2
from servd.wire.grpc.codes import Code
from servd.wire.grpc.messages import GrpcMethod, GrpcRoute
from servd.wire.grpc.protobuf import bytes_field, fields, number_field
from servd.wire.records import answer_block, read_answer_block
from tests.core.build import HTTP, World, a_build, a_goal, an_app, some_settings, verbs

ADD = "stand_pb2_grpc.add_FruitStandServicer_to_server"
PRICE, WATCH = GrpcMethod("/s.Stand/Price", is_idempotent=True), GrpcMethod("/s.Stand/Watch", streams_out=True)


class AHandler:
    """As `grpc.RpcMethodHandler` is."""

    def __init__(self, streams_in: bool = False, streams_out: bool = False) -> None:
        self.request_streaming, self.response_streaming = streams_in, streams_out
        self.request_deserializer = bytes.decode
        self.response_serializer = str.encode


class AGeneric:
    """As generated code hands it over since ever."""

    def __init__(self, service: str, handlers: dict[str, AHandler]) -> None:
        self._method_handlers = {f"/{service}/{name}": handler for name, handler in handlers.items()}


def add_old(servicer: Any, server: Any) -> None:
    assert servicer.Price is None
    server.add_generic_rpc_handlers((AGeneric("s.Stand", {"Price": AHandler()}),))


def add_new(servicer: Any, server: Any) -> None:
    handlers = {"Price": AHandler(), "__call__": AHandler(True, True)}
    assert servicer.__call__ is None
    server.add_generic_rpc_handlers((AGeneric("s.Stand", handlers),))
    server.add_registered_method_handlers("s.Stand", handlers)


def a_table(*apps: str) -> GrpcTable:
    table = GrpcTable()
    table.update(GrpcRoute(app, f"{app}_D", (PRICE,)) for app in apps)
    return table


@pytest.mark.parametrize(("add", "names"), [(add_old, {"Price"}), (add_new, {"Price", "__call__"})])
def test_methods_of_generated_code_of_any_age_are_found(add: Any, names: set[str]) -> None:
    found = codecs_of([("m.add", add)])
    assert set(found) == {f"/s.Stand/{name}" for name in names}
    assert found["/s.Stand/Price"].described() == GrpcMethod("/s.Stand/Price")
    assert found["/s.Stand/Price"].read(b"x") == "x"
    with pytest.raises(TypeError, match=r"for /s.Stand/Price gave int, not its response message"):
        found["/s.Stand/Price"].write(7)


def test_what_registers_nothing_or_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"m\.f registers no method"):
        codecs_of([("m.f", lambda _servicer, _server: None)])
    with pytest.raises(ValueError, match=r"m.g registers /s.Stand/Price, which another"):
        codecs_of([("m.f", add_old), ("m.g", add_old)])


@pytest.mark.parametrize(
    ("apps", "asked", "served"), [(["a"], None, "a"), (["a"], "a", "a"), (["a", "b"], "b", "b"), ([""], None, "")]
)
def test_an_application_is_found(apps: list[str], asked: str | None, served: str) -> None:
    assert a_table(*apps).find(asked).app == served


@pytest.mark.parametrize(
    ("apps", "asked", "words"), [([], None, "none is deployed"), (["a", "b"], None, "a, b"), (["a"], "x", "'x'")]
)
def test_why_no_application_is_found(apps: list[str], asked: str | None, words: str) -> None:
    with pytest.raises(NoRouteError, match=words):
        a_table(*apps).find(asked)


def test_the_first_application_that_has_a_method_says_of_which_kind_it_is() -> None:
    table = GrpcTable()
    table.update([GrpcRoute("a", "a_D", (PRICE,)), GrpcRoute("b", "b_D", (replace(PRICE, streams_in=True), WATCH))])
    assert table.methods == {PRICE.name: PRICE, WATCH.name: WATCH}
    assert [table.has(table.find(app), WATCH.name) for app in "ab"] == [False, True]


def test_an_answer_block_says_what_was_set() -> None:
    assert answer_block("", ()) == b""
    assert read_answer_block(b"") == ("", ())
    assert read_answer_block(answer_block("no", (("k", "v"), ("k-bin", b"\0")))) == (
        "no",
        (("k", "v"), ("k-bin", b"\0")),
    )


def test_the_context_takes_what_grpc_can_send() -> None:
    context = RayServegRPCContext((("a", "b"),), "ipv4:1.2.3.4:5", 12.0, lambda: 10.0)
    context.set_code(5)
    context.set_details("none left")
    context.set_trailing_metadata([("stock", "plenty"), ("trace-bin", b"\xff")])
    assert (context.code(), context.details(), context.time_remaining()) == (5, "none left", 2.0)
    assert (context.invocation_metadata(), context.peer()) == ((("a", "b"),), "ipv4:1.2.3.4:5")
    assert context.trailing_metadata() == (("stock", "plenty"), ("trace-bin", b"\xff"))
    for pair in [("Upper", "x"), ("a", 7), ("a", "\n"), ("a-bin", "x"), ("", "x")]:
        with pytest.raises(ValueError, match=r"metadata|value of"):
            context.set_trailing_metadata([pair])  # type: ignore[list-item]
    for code in (99, "NOT_FOUND", None, True):
        with pytest.raises(ValueError, match=r"status code|valid Code"):
            context.set_code(code)


def test_a_status_may_be_that_of_the_library() -> None:
    class Status:
        value = (5, "not found")

    assert code_of(Status()) is code_of(5) is Code.NOT_FOUND
    assert str(gRPCStatusError(KeyError("x"), 5, "none left")) == "none left"


def test_the_context_knows_the_metadata_that_ray_names() -> None:
    said = (
        ("request_id", "r"),
        ("application", "a"),
        ("application", "b"),
        ("traceparent", "00-1"),
        ("tracestate", "x=1"),
    )
    context = RayServegRPCContext((*said, ("multiplexed_model_id-bin", b"m"), ("a-bin", b"x")))
    assert (context.request_id(), context.application()) == ("r", "b")
    assert (context.traceparent(), context.tracestate(), context.multiplexed_model_id()) == ("00-1", "x=1", None)
    assert (context.peer_identity_key(), context.peer_identities()) == (None, None)
    assert context.auth_context()["transport_security_type"] == [b"insecure"]
    known = ("x509_common_name", (("x509_common_name", (b"me",)),))
    context = RayServegRPCContext(authentication=known)
    assert (context.peer_identity_key(), context.peer_identities()) == ("x509_common_name", [b"me"])
    for kind in (0, 1, 2):
        context.set_compression(kind)
        assert context.compression() == kind
    for kind in (3, True, "gzip", None):
        with pytest.raises(ValueError, match="no kind of compression"):
            context.set_compression(kind)
    context.has_begun = True
    with pytest.raises(RuntimeError, match="before the first message"):
        context.set_compression(1)


async def some(*values: int) -> AsyncIterator[int]:
    for value in values:
        yield value


async def test_requests_are_read_on_the_loop_and_from_threads() -> None:
    def a_stream() -> gRPCInputStream:
        return gRPCInputStream(some(1, 2))

    assert [request async for request in a_stream()] == [1, 2]
    assert await asyncio.to_thread(list, a_stream()) == [1, 2]
    with pytest.raises(RuntimeError, match="async for"):
        list(a_stream())
    with pytest.raises(RuntimeError, match="async for"):
        # made in a thread, where there is no loop to ask
        list(await asyncio.to_thread(a_stream))


async def test_a_stream_of_requests_ends_where_it_is_told_to() -> None:
    gone = asyncio.Event()
    stream = gRPCInputStream(some(1, 2, 3), cancel_event=gone)
    assert (await anext(stream), stream.is_exhausted, stream.is_cancelled()) == (1, False, False)
    gone.set()
    assert stream.is_cancelled()
    assert [request async for request in stream] == []
    assert stream.is_exhausted
    stream = gRPCInputStream(some(1))
    assert [request async for request in stream] == [1]
    assert (stream.is_exhausted, stream.is_cancelled()) == (True, False)
    stream.cancel()
    assert stream.is_cancelled()


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        ({}, HttpWish()),
        ({"port": 9000, "grpc_servicer_functions": []}, HttpWish(grpc_servicers=())),
        ({"grpc_servicer_functions": [ADD]}, HttpWish(grpc_servicers=(ADD,))),
        (
            {"port": 9001, "grpc_servicer_functions": [ADD], "request_timeout_s": 2},
            HttpWish(grpc_port=9001, grpc_servicers=(ADD,), grpc_request_timeout_s=2.0),
        ),
    ],
)
def test_options_of_a_document(options: dict[str, Any], wish: HttpWish) -> None:
    document = parse_v2({"applications": [], "grpc_options": options})
    assert document.http == wish
    if wish.grpc_port:
        sent = top_level(document, [])
        assert sent["grpc_options"] == {**options, "grpc_servicer_functions": (ADD,)}


def situation(http: HttpGoal = HTTP, *present: str) -> Situation:
    return Situation(http, present, (), 5.0, 7)


def test_servicers_open_the_port_also_where_applications_run() -> None:
    document = parse_v2({"applications": [], "grpc_options": {"grpc_servicer_functions": [ADD]}})
    http = check_put(a_goal(an_app()), document, situation(HTTP, "app"))
    assert (http.grpc_port, http.grpc_servicers) == (9000, (ADD,))
    moved = parse_v2({"applications": [], "grpc_options": {"port": 9001, "grpc_servicer_functions": [ADD]}})
    with pytest.raises(ConfigError, match="gRPC port is 9000 and cannot be changed to 9001"):
        check_put(a_goal(an_app()), moved, situation(http, "app"))
    assert check_put(a_goal(an_app()), moved, situation(http)).grpc_port == 9001


def test_other_servicers_are_other_code() -> None:
    document = parse_v2({"applications": [{"name": "a", "import_path": "m:a"}]})
    plain, with_grpc = (put(Goal(), document, http, situation(), {}) for http in (HTTP, GRPC))
    (old,), (new,) = plain.applications, with_grpc.applications
    assert new.grpc_servicers == (ADD,)
    assert code_fields(old, new) == ["grpc_options.grpc_servicer_functions"]
    assert goal_from_json(goal_to_json(with_grpc)) == with_grpc


GRPC = replace(HTTP, grpc_port=9000, grpc_servicers=(ADD,))


def test_flags_reach_stored_applications() -> None:
    settings = some_settings(grpc_port=9000, grpc_servicers=(ADD,), grpc_reflection=False)
    goal = boot(a_goal(an_app()), World().observed, settings)
    assert goal.http == replace(GRPC, grpc_reflection=False)
    assert [app.grpc_servicers for app in goal.applications] == [(ADD,)]


def a_world(http: HttpGoal) -> World:
    world = World(replace(a_goal(replace(an_app(), grpc_servicers=http.grpc_servicers)), http=http))
    world.builds["app"] = replace(a_build("D"), grpc_methods=(PRICE,))
    return world


def test_a_build_imports_the_servicers_and_proxies_are_told_the_methods() -> None:
    world = a_world(replace(GRPC, grpc_request_timeout_s=4.0)).run()
    orders = [action.fact.order for action in world.log if isinstance(action, actions.StartForkServer)]
    assert [order.grpc_servicers for order in orders] == [(ADD,)]
    assert world.observed.published is not None
    assert world.observed.published.grpc == (GrpcRoute("app", "app_D", (PRICE,), 4.0),)
    assert [proxy.grpc_port for proxy in world.observed.proxies.values()] == [9000]


def test_proxies_are_replaced_when_the_port_opens() -> None:
    world = a_world(HTTP).run()
    (before,) = world.observed.proxies
    assert world.observed.published is not None
    assert world.observed.published.grpc == ()
    world.goal = replace(world.goal, http=GRPC)
    world.log.clear()
    world.run()
    assert "StartProxy" in verbs(world.log)
    assert before not in [proxy_id for proxy_id, proxy in world.observed.proxies.items() if not proxy.draining]


def test_calls_of_grpc_have_counters_of_their_own() -> None:
    series = Series()
    series.tenths[3] += 2
    found = {
        (("/s.Stand/Price", "a", "a_D", ""), "gRPC", "OK"): series,
        (("/s.Stand/Price", "a", "a_D", ""), "gRPC", "UNAVAILABLE"): series,
        (("/", "a", "a_D", ""), "GET", 200): series,
    }
    counts = {family.name: [number for _, number in family.samples] for family in grpc_families(found)}
    assert counts["serve_num_grpc_requests"] == [2, 2]
    assert counts["serve_num_grpc_error_requests"] == counts["serve_num_deployment_grpc_error_requests"] == [2]
    assert [
        number
        for found in http_families(found)
        if found.name == "serve_num_http_requests"
        for _, number in found.samples
    ] == [2]


def test_clients_of_rays_own_service_need_no_generated_code() -> None:
    class Channel:
        def unary_unary(self, name: str, request_serializer: Any, response_deserializer: Any) -> Any:
            answers = {"ListApplications": applications_answer(["a", "b"]), "Healthz": healthz_answer("success")}
            answer = answers[name.removeprefix("/ray.serve.RayServeAPIService/")]
            return lambda request: (request_serializer(request), response_deserializer(answer))

    stub = RayServeAPIServiceStub(Channel())
    sent, listed = stub.ListApplications(ListApplicationsRequest())
    assert (sent, listed.application_names) == (b"", ["a", "b"])
    assert stub.Healthz(HealthzRequest())[1].message == "success"


def test_other_names_of_rays_generated_modules_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_serve_pb2")
    monkeypatch.setitem(sys.modules, "a_serve_pb2", module)
    fill_messages(module)
    assert module.HealthzRequest is HealthzRequest
    words = r"serve_pb2 has .*HealthzRequest.*no UserDefinedMessage: generate the code"
    with pytest.raises(ImportError, match=words):
        exec("from a_serve_pb2 import HealthzRequest, UserDefinedMessage")
    with pytest.raises(AttributeError, match=words):
        _ = module.UserDefinedMessage
    assert not hasattr(module, "UserDefinedMessage")
    assert getattr(module, "UserDefinedMessage", None) is None
    assert not hasattr(module, "__path__")


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\xff" * 11, b"\x0b", b"\x09123"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(fields(data))


def test_fields_of_every_kind_are_read() -> None:
    long = bytes_field(20, "x" * 300)
    data = number_field(1, 300) + bytes_field(2, "ab") + b"\x19" + bytes(8) + b"\x25" + bytes(4) + long
    assert list(fields(data)) == [(1, 300), (2, b"ab"), (20, b"x" * 300)]


def test_a_health_check_names_a_service() -> None:
    assert [service_asked(data) for data in (b"", bytes_field(1, "a.B"))] == ["", "a.B"]
