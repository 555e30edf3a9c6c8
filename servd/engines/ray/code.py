"""Python files as a scan sees them: which name means what, without importing anything."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from servd.exceptions import ConfigError

Function = ast.FunctionDef | ast.AsyncFunctionDef
DECORATORS = ("ray.serve.deployment", "servd.deployment")


@dataclass
class CodeFile:
    """A parsed file. path: as it is shown. package: dotted name that its relative imports start from."""

    path: str
    package: str
    tree: ast.Module
    names: dict[str, str] = field(init=False)
    """Name in this file -> what was imported under it, dotted: `serve` -> `ray.serve`."""

    def __post_init__(self) -> None:
        self.names = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.names[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                module = self.absolute(node)
                self.names.update({alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names})

    def absolute(self, node: ast.ImportFrom) -> str:
        """Module that a `from` names, dotted and absolute."""
        if not node.level:
            return node.module or ""
        parts = self.package.split(".") if self.package else []
        kept = parts[: len(parts) - node.level + 1]
        return ".".join([*kept, *([node.module] if node.module else [])])

    def dotted(self, node: ast.AST | None) -> str:
        """What an expression of names and dots means, from its import on; "" where it begins with none."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, "")
        if isinstance(node, ast.Attribute):
            head = self.dotted(node.value)
            return f"{head}.{node.attr}" if head else ""
        return ""

    @cached_property
    def is_servds(self) -> bool:
        """Whether it is written with `import servd`: on a cluster servd's own package runs it."""
        return any(one.partition(".")[0] == "servd" for one in self.names.values())

    @cached_property
    def deployments(self) -> dict[str, "DeploymentCode"]:
        """Name in this file -> deployment, those of decorated classes and functions and of calls of the decorator."""
        found: dict[str, DeploymentCode] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef | Function):
                for decorator in node.decorator_list:
                    call = decorator if isinstance(decorator, ast.Call) else None
                    if self.dotted(call.func if call else decorator) in DECORATORS:
                        found[node.name] = DeploymentCode(node, call)
        for node in ast.walk(self.tree):
            # Stand = deployment(name="Stand")(Class), Other = Stand.options(name="Other")
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and isinstance(node.targets[0], ast.Name)
            ):
                made = self._made(node.value, found)
                if made is not None:
                    found[node.targets[0].id] = made
        return found

    def _made(self, call: ast.Call, known: dict[str, "DeploymentCode"]) -> "DeploymentCode | None":
        inner = call.func
        if isinstance(inner, ast.Call) and self.dotted(inner.func) in DECORATORS and call.args:
            return DeploymentCode(self._definition(call.args[0]), inner)
        if self.dotted(inner) in DECORATORS and call.args:
            return DeploymentCode(self._definition(call.args[0]), call)
        if isinstance(inner, ast.Attribute) and inner.attr == "options" and isinstance(inner.value, ast.Name):
            of = known.get(inner.value.id)
            return DeploymentCode(of.target, call) if of else None
        return None

    def _definition(self, node: ast.AST) -> "ast.ClassDef | Function | None":
        name = node.id if isinstance(node, ast.Name) else ""
        return next(
            (one for one in self.tree.body if isinstance(one, ast.ClassDef | Function) and one.name == name), None
        )


@dataclass(frozen=True)
class DeploymentCode:
    """A deployment in code. target: its class or function, where this file has it. call: that of the decorator, if it has one."""

    target: ast.ClassDef | Function | None
    call: ast.Call | None

    def option(self, name: str) -> ast.expr | None:
        """The expression given for an option."""
        found = self.call.keywords if self.call else ()
        return next((keyword.value for keyword in found if keyword.arg == name), None)

    @property
    def name(self) -> str:
        """Its bare name; "" where that is computed."""
        given = self.option("name")
        if given is not None:
            return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else ""
        return self.target.name if self.target else ""


def parse(path: str, shown: str = "", package: str = "") -> CodeFile:
    """A file as a scan sees it.

    Raises:
        ConfigError: it cannot be read, or is no Python.
    """
    try:
        text = Path(path).read_bytes()
        return CodeFile(shown or path, package, ast.parse(text))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path}{line}: no Python: {error}") from error


def reachable(module: str, roots: Sequence[str]) -> list[CodeFile]:
    """The file of a module and those of all that it imports from the same folders; empty where no folder has it.

    Args:
        module: dotted.
        roots: folders that are on the import path, in their order.

    Raises:
        ConfigError: see `parse`.
    """
    found: dict[str, CodeFile] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if not all(name.split(".")):
            # a relative import that leads out of the packages
            continue
        parents = [name.rsplit(".", count)[0] for count in range(name.count("."), 0, -1)]
        for one in [*parents, name]:
            if one not in found and (place := _file_of(one, roots)):
                is_package = place.endswith("__init__.py")
                found[one] = parse(place, shown_path(place), one if is_package else one.rpartition(".")[0])
                waiting += imported_by(found[one])
    return list(found.values())


def imported_by(file: CodeFile) -> Iterator[str]:
    """Modules that a file names in its imports, absolute; `from a import b` may mean `a.b`."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = file.absolute(node)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def of_script(path: str) -> list[CodeFile]:
    """A file that is given by its path, and what it imports from the folder that its package lies in."""
    place = Path(path).absolute()
    names = [place.stem] if place.stem != "__init__" else []
    folder = place.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return reachable(".".join(names), [str(folder)]) or [parse(path)]


def _file_of(module: str, roots: Sequence[str]) -> str:
    for root in roots:
        place = Path(root, *module.split("."))
        for candidate in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if candidate.is_file():
                return str(candidate)
    return ""


def shown_path(path: str) -> str:
    """The path as people write it: from the current directory where it lies below that."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
