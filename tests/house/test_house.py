"""The house keeps its order: layers, cycles, one home per library, file and function sizes, names."""

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.house.floors import FLOORS, PAGE, ROOMS, drawn, may_import, room_of

SERVD = Path(__file__).parents[2] / "servd"
MODULES = sorted(SERVD.rglob("*.py"))
PURE = ("ground.ids", "ground.states", "exceptions", "wire.messages", "documents.control_plane", "app.graph_nodes",
        "documents.runtime_env", "calls.routes.table", "calls.routes.patterns", "calls.request_router",
        "calls.circles")  # fmt: skip
PUBLIC_AT_MOST, FOLDER_AT_MOST = 20, 25
IMPURE = {
    "asyncio",
    "socket",
    "threading",
    "subprocess",
    "multiprocessing",
    "zmq",
    "time",
    "select",
    "signal",
    "sqlite3",
}
HOMES = {
    "zmq": {"wire.sockets", "wire.link", "wire.caller_link"},
    "msgpack": {"wire.codec", "wire.records"},
    "pickle": {"calls.pickling"},
    "cloudpickle": {"calls.pickling"},
    "multiprocessing": {"daemon.boot", "daemon.takeover", "daemon.keepsake", "daemon.spawned_controller", "controller.supervisor",
                        "replica.fork_server", "replica.spawned", "replica.native.begun_anew", "replica.native.shared_locks",
                        "controller.main", "proxy.main",
                        "ground.process"},
    "httptools": {"proxy.http1"},
    "hypercorn": {
        "proxy.hypercorn.buffer",
        "proxy.hypercorn.http2",
        "proxy.hypercorn.lane",
        "proxy.hypercorn.websocket",
        "rest.app",
        "rest.server",
    },
    "websockets": {"wire.websocket.protocol"},
    "grpc": {"proxy.grpc.lane", "proxy.grpc.served", "proxy.grpc.own_services", "proxy.grpc.certificate"},
    "typer": {"cli", "commands.operator_cli", "commands.cli_options", "engines.cli"},
    "yaml": {"documents.files"},
    "time": {"ground.clock"},
    "rich": {"commands.console"},
    "psutil": {"controller.supervisor"},
    "uvloop": {"ground.event_loop"},
    "setproctitle": {"ground.process", "daemon.boot"},
    "sqlite3": {"controller.goal_store", "controller.goal_file", "controller.fact_store"},
    "prometheus_client": {"metrics"},
    "mypy": {"app.mypy_plugin"},
}  # fmt: skip
SHADOWS = {"deployment", "ingress", "build", "run", "batch", "status", "delete", "start"}
DRAWERS = {"utils", "util", "common", "helpers", "base", "misc", "manager", "info"}


@cache
def name_of(path: Path) -> str:
    parts = path.relative_to(SERVD).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


KNOWN = frozenset(name_of(path) for path in MODULES if path.stem != "__init__" or path.parent == SERVD)


@dataclass(frozen=True)
class Contents:
    """What the rules are about, of one file. Syntax trees are large, and would be kept till the last test.

    functions: (name, lines) of each. imports: modules that it imports: at its top, in functions, for type checkers, or by a name
    that is written out. statements: at the top of the file. draws: functions of the module `random` that it uses.
    """

    lines: int
    doc: str
    statements: int
    functions: tuple[tuple[str, int], ...]
    imports: tuple[str, ...]
    draws: tuple[str, ...]


@cache
def contents(path: Path) -> Contents:
    text = path.read_text()
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return Contents(
        text.count("\n"),
        ast.get_docstring(tree) or "",
        len(tree.body),
        tuple((node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions),
        tuple(name for node in nodes for name in _imports(node, path)),
        tuple(node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random"),
    )


def _imports(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: relative import"
        assert node.module is not None
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
        yield from (word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str))


@cache
def own_imports(path: Path) -> frozenset[str]:
    """Those of servd's own; rooms themselves, which are empty, left out."""
    found = {name.removeprefix("servd.") for name in contents(path).imports if name.startswith("servd.")}
    return frozenset(found & KNOWN - {name_of(path)})


def sizes(path: Path) -> Iterator[str]:
    if (lines := contents(path).lines) > 400:
        yield f"{path.name} has {lines} lines"
    yield from (f"{path.name}: {name} has {size} lines" for name, size in contents(path).functions if size > 60)


def one_home_per_library(path: Path) -> Iterator[str]:
    name = name_of(path)
    for module in contents(path).imports:
        homes = HOMES.get(module.partition(".")[0], {name})
        if name not in homes and module.count(".") < 3:
            yield f"{name} imports {module}; its home is {sorted(homes)}"


def names(path: Path) -> Iterator[str]:
    if path.stem in DRAWERS:
        yield f"{path} is a drawer"
    if path.parent == SERVD and path.stem in SHADOWS:
        yield f"{path}: a late import of the module would replace the public function"
    if path.stem != "__init__" and path.stem in path.parent.relative_to(SERVD).parts:
        yield f"{path} repeats its room's name"
    if not contents(path).doc:
        yield f"{path} has no docstring"


def imports_go_down(path: Path) -> Iterator[str]:
    if wrong := sorted(other for other in own_imports(path) if not may_import(name_of(path), other)):
        yield f"{name_of(path)} stands in {room_of(name_of(path))}, which may not enter {wrong}"


def the_shared_generator_is_the_applications(path: Path) -> Iterator[str]:
    if drawn_from := sorted(set(contents(path).draws) - {"Random", "SystemRandom"}):
        yield f"{path.name} uses {drawn_from} of `random`, which applications seed: see servd.ground.ids.SYSTEM"


RULES = [sizes, one_home_per_library, names, imports_go_down, the_shared_generator_is_the_applications]


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_the_rules(rule: Callable[[Path], Iterator[str]]) -> None:
    assert len(MODULES) > 300
    assert [fault for path in MODULES for fault in rule(path)] == []


@pytest.mark.parametrize(
    ("rule", "name", "text", "fault"),
    [
        (sizes, "a", '"""A."""\n' * 401, "a.py has 401 lines"),
        (sizes, "a", "def f():\n" + "    pass\n" * 60, "a.py: f has 61 lines"),
        (one_home_per_library, "a", "def f():\n    import zmq", "a imports zmq; its home is"),
        (names, "utils", '"""A."""', "utils.py is a drawer"),
        (names, "deployment", '"""A."""', "deployment.py: a late import"),
        (names, "wire/wire", '"""A."""', "wire.py repeats its room's name"),
        (names, "a", "pass", "a.py has no docstring"),
        (the_shared_generator_is_the_applications, "a", "random.choice('ab')", "a.py uses ['choice'] of `random`"),
        (imports_go_down, "ground/a", "from servd.rest import app", "ground.a stands in ground, which may not enter"),
    ],
)
def test_who_breaks_a_rule_is_named(
    rule: Callable[[Path], Iterator[str]],
    name: str,
    text: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.house.test_house.SERVD", tmp_path)
    path = tmp_path / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    [said] = rule(path)
    assert fault in said


def test_the_root_holds_what_users_import_or_start() -> None:
    here = {path.stem for path in SERVD.glob("*.py")} - {"__init__", "__main__"}
    assert here == {name for floor in FLOORS for name in floor.public} - {"", "__main__"}
    assert len(here) + 2 <= PUBLIC_AT_MOST


def test_every_folder_is_a_room_that_says_what_lives_there() -> None:
    folders = {path.parent for path in MODULES} - {SERVD, SERVD / "compat" / "on_path"}
    assert {".".join(folder.relative_to(SERVD).parts) for folder in folders} == ROOMS
    for folder in folders:
        assert len(list(folder.glob("*.py"))) <= FOLDER_AT_MOST, f"{folder.name} is a hall, not a room"
        door = contents(folder / "__init__.py")
        assert len(door.doc) > 100, f"{folder.name} does not say what lives there"
        assert door.statements == 1, f"{folder.name}/__init__.py does something"


@pytest.mark.parametrize("path", sorted((SERVD / "controller" / "plan").glob("*.py")), ids=name_of)
def test_what_decides_imports_nothing_that_does(path: Path) -> None:
    for module in contents(path).imports:
        assert module.partition(".")[0] not in IMPURE, f"{path.stem} imports {module}"


@pytest.mark.parametrize("name", PURE)
def test_pure_files_touch_no_world(name: str) -> None:
    for module in contents(SERVD.joinpath(*name.split(".")).with_suffix(".py")).imports:
        assert module.partition(".")[0] not in IMPURE, f"{name} imports {module}"


def test_nothing_imports_in_a_circle() -> None:
    # the package itself is a facade above everything: what it names is imported when somebody asks for it
    graph = {name_of(path): own_imports(path) for path in MODULES if path != SERVD / "__init__.py"}
    assert circle_in(graph) == []


@pytest.mark.parametrize(
    "text",
    [
        "from servd.b import x",
        "import servd.b",
        "def f():\n    from servd import b",
        "if TYPE_CHECKING:\n    from servd.b import X",
        "def f():\n    importlib.import_module('servd.b')",
    ],
)
def test_circles_of_every_kind_are_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(text)
    found = {name.removeprefix("servd.").partition(".")[0] for name in contents(path).imports} & {"a", "b"}
    assert circle_in({"a": found, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle_in({"a": found, "b": {"c"}, "c": set()}) == []


def circle_in(graph: Mapping[str, Collection[str]]) -> list[str]:
    """A way through the graph that comes back to where it began, [] where there is none."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if found := visit(other, (*trail, name)):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, ()))), [])


def test_the_picture_is_that_of_the_table() -> None:
    assert drawn(PAGE.read_text()) == PAGE.read_text(), "run `python -m tests.house.floors`"
