"""The house keeps its order: layers, cycles, one home per library, file and function sizes, names."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVD = ROOT / "servd"
MODULES = sorted(SERVD.rglob("*.py"))
ROOMS = ("controller", "replica", "proxy", "rest")
DECIDES = (
    "actions", "autoscaler", "change", "data_plane", "differences", "dry_run", "events", "facts", "goal", "intents",
    "observed", "outgrown", "reconciler", "replica_plan", "resources", "restarts", "rollout", "routing", "settle",
    "silence",
    "slow_starts", "status", "targets", "templates",
)  # fmt: skip
PURE_ROOT = ("ids", "states", "exceptions", "messages", "control_plane", "deployment_graph", "runtime_env",
             "route_table", "request_router")  # fmt: skip
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
    "zmq": {"link"},
    "msgpack": {"codec", "records"},
    "pickle": {"pickling"},
    "cloudpickle": {"pickling"},
    "multiprocessing": {"daemon", "controller.supervisor", "replica.fork_server", "replica.main", "controller.main",
                        "proxy.main"},
    "httptools": {"proxy.http1"},
    "hypercorn": {
        "proxy.hypercorn_http2",
        "proxy.hypercorn_lane",
        "proxy.hypercorn_websocket",
        "rest.app",
        "rest.server",
    },
    "typer": {"cli", "cli_operations", "cli_options"},
    "yaml": {"document_files"},
    "time": {"clock"},
    "rich": {"console"},
    "psutil": {"replica.warden", "controller.supervisor"},
    "uvloop": {"process"},
    "setproctitle": {"process", "daemon"},
    "sqlite3": {"controller.goal_store", "controller.fact_store"},
    "prometheus_client": {"metrics"},
}  # fmt: skip
DRAWERS = {"utils", "util", "common", "helpers", "base", "misc", "manager", "info"}


def name_of(path: Path) -> str:
    parts = path.relative_to(SERVD).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, late: bool = True) -> Iterator[str]:
    """Modules that a file imports; `late` includes those inside functions, type-checking ones are left out."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(ast.walk(node))
        if not late and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree_of(path)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path, *, late: bool = False) -> set[str]:
    known = {name_of(p) for p in MODULES}
    found = {name.removeprefix("servd.") for name in imports(path, late=late) if name.startswith("servd.")}
    return found & known - {name_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_sizes(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 400, f"{path.name} has {lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= 60, f"{path.name}: {node.name} has {size} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_one_home_per_library(path: Path) -> None:
    name = name_of(path)
    for module in imports(path):
        library = module.partition(".")[0]
        if library in HOMES and module.count(".") < 3:
            assert name in HOMES[library], f"{name} imports {module}; its home is {sorted(HOMES[library])}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names(path: Path) -> None:
    assert path.stem not in DRAWERS
    assert path.stem not in {"deployment", "ingress", "build", "run", "batch", "status", "delete", "start"} or (
        path.parent != SERVD
    ), "a late import of the module would replace the public function"
    if path.stem != "__init__" or path.parent == SERVD:
        assert ast.get_docstring(tree_of(path)), f"{path} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_do_not_import_each_other(path: Path) -> None:
    room = path.relative_to(SERVD).parts[0]
    if path.stem in ("main", "cli", "supervisor", "local_mode"):
        return
    for module in own_imports(path, late=True):
        other = module.partition(".")[0]
        if other in ROOMS:
            assert room == other, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("name", DECIDES)
def test_what_decides_imports_nothing_that_does(name: str) -> None:
    path = SERVD / "controller" / f"{name}.py"
    for module in imports(path):
        assert module.partition(".")[0] not in IMPURE, f"{name} imports {module}"
    inside = {m.removeprefix("controller.") for m in own_imports(path, late=True) if m.startswith("controller.")}
    assert inside <= set(DECIDES), f"{name} imports {inside - set(DECIDES)}"


@pytest.mark.parametrize("name", PURE_ROOT)
def test_pure_files_touch_no_world(name: str) -> None:
    for module in imports(SERVD / f"{name}.py"):
        assert module.partition(".")[0] not in IMPURE, f"{name} imports {module}"


def test_no_cycles() -> None:
    graph = {name_of(path): own_imports(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
