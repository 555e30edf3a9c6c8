"""The page of all public names, with their signatures and docstrings, from the sources."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import servd
from servd.documents.checked import Document
from tools.reference.tables import MADE

_INTRO = """# Every public name

Signatures and docstrings as they stand in the code. How the parts work together, with examples, is in [Python](../api.md).

"""
# of the documents' models, whose keys are told in the page about config files
_MODELS = "servd.schema"
_PACKAGE = str(Path(servd.__file__).parent)
_LISTS = ("Args", "Attributes", "Raises")
_SECTIONS = (*_LISTS, "Returns", "Yields", "Source")


@cache
def _parsed(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text())


def _files_of(thing: Any) -> list[str]:
    """Where a class or function may be written; none of anything else. A class may bear the name of another module."""
    if inspect.isfunction(thing):
        return [thing.__code__.co_filename]
    if not inspect.isclass(thing):
        return []
    methods = [part.__code__.co_filename for part in vars(thing).values() if inspect.isfunction(part)]
    files = [getattr(sys.modules.get(thing.__module__), "__file__", None) or "", *methods]
    return [file for file in dict.fromkeys(files) if file.startswith(_PACKAGE)]


def _statement(path: str, names: list[str]) -> Any:
    nodes: list[Any] = _parsed(path).body
    node = None
    for part in names:
        matches = [node for node in nodes if getattr(node, "name", None) == part]
        if not matches:
            return None
        # the last one of a name is the one that holds; those before are its overloads
        node = matches[-1]
        nodes = node.body
    return node


def _found(thing: Any) -> Any:
    """The statement that makes a class or function, as it stands in its file; None if it is neither."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    nodes = (_statement(path, thing.__qualname__.split(".")) for path in _files_of(thing))
    return next((node for node in nodes if node is not None), None)


def _arguments(node: Any, *, is_method: bool) -> str:
    arguments = node.args
    if is_method and not any(getattr(word, "id", "") == "staticmethod" for word in node.decorator_list):
        first = (arguments.posonlyargs or arguments.args)[:1]
        arguments = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args  # type: ignore[attr-defined]
        if first:
            (arguments.posonlyargs or arguments.args).pop(0)
    return ast.unparse(arguments)


def _signature(node: Any, name: str, *, is_method: bool = False) -> str:
    before = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{before}{name}({_arguments(node, is_method=is_method)}){returns}"
    if len(line) <= 100:
        return line
    inner = ast.parse(f"def f({_arguments(node, is_method=is_method)}): ...").body[0].args  # type: ignore[attr-defined]
    return f"{before}{name}(\n" + "".join(f"    {part},\n" for part in _pieces(inner)) + f"){returns}"


def _pieces(arguments: ast.arguments) -> list[str]:
    """One text for each parameter."""
    found: list[str] = []
    depth, begin, text = 0, 0, ast.unparse(arguments)
    for index, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append(text[begin:index].strip())
            begin = index + 1
    return [*found, text[begin:].strip()]


def _escaped(text: str) -> str:
    """Words with underscores or angle brackets outside of code are left as they are written."""
    parts = re.split(r"(``?[^`]+``?)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\[])", r"\\\1", part) for part in parts)


def _prose(docstring: str) -> str:
    """A docstring as Markdown: sections become lists, blocks stay blocks."""
    lines = textwrap.dedent(docstring).strip().splitlines()
    out: list[str] = []
    section = ""
    for line in lines:
        heading = re.fullmatch(r"(\w+):", line.strip())
        if heading and heading[1] in _SECTIONS:
            section = heading[1]
            out += [*([""] if out and out[-1] else []), f"*{section}*", ""]
            continue
        if not section or not line.startswith("    "):
            if line.strip():
                section = ""
            out.append(_escaped(line))
            continue
        text, is_deeper = line[4:], line.startswith("        ")
        item = re.fullmatch(r"(\*{0,2}[\w., *]+): (.*)", text)
        if item and not is_deeper and section in _LISTS:
            out.append(f"- `{item[1]}`: {_escaped(item[2])}")
        else:
            out.append(("  " if section in _LISTS else "") + _escaped(text.strip()))
    return "\n".join(out).strip() + "\n"


def _function(node: Any, name: str, level: str) -> str:
    text = _prose(ast.get_docstring(node) or "")
    return f"{level} {name.rpartition('.')[2]}\n\n```text\n{_signature(node, name)}\n```\n\n{text}"


def _methods(node: ast.ClassDef, name: str) -> list[str]:
    found = []
    for part in node.body:
        is_public = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and not part.name.startswith("_")
        doc = ast.get_docstring(part) if is_public else None  # type: ignore[arg-type]
        if not doc:
            continue
        words = {ast.unparse(word) for word in part.decorator_list}  # type: ignore[attr-defined]
        if "overload" in words:
            continue
        is_property = bool(words & {"property", "cached_property"})
        short = name.rpartition(".")[2]
        returns = getattr(part, "returns", None)
        shown = (
            f"{short}.{part.name}" + (f": {ast.unparse(returns)}" if returns else "")  # type: ignore[attr-defined]
            if is_property
            else _signature(part, f"{short}.{part.name}", is_method=True)  # type: ignore[attr-defined]
        )
        found.append(f"```text\n{shown}\n```\n\n{_prose(doc)}")
    return found


def _class(node: ast.ClassDef, name: str, thing: Any) -> str:
    made = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    fields = [
        part for part in node.body if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_")
    ]
    is_document = issubclass(thing, Document)
    if made:
        head = _signature(made, name, is_method=True).removesuffix(" -> None")
    elif is_document or not fields or issubclass(thing, Enum):
        head = f"{name}(**keys)" if is_document else name
    else:
        head = f"{name}(\n" + "".join(f"    {ast.unparse(part)},\n" for part in fields) + ")"
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    base = f"Of `{bases}`. " if bases and not is_document else ""
    parts = [
        f"### {name.rpartition('.')[2]}\n\n```text\nclass {head}\n```\n\n{base}{_prose(ast.get_docstring(node) or '')}"
    ]
    if is_document:
        keys = ", ".join(f"`{key}`" for key in (*thing.model_fields, *thing.later_names))
        parts.append(f"Keys, whose meaning is in [Every key of a config file](config.md): {keys}.\n")
    elif issubclass(thing, Enum):
        parts.append(f"Members: {', '.join(f'`{member.name}`' for member in thing)}.\n")
    else:
        parts += _methods(node, name)
    return "\n".join(parts)


def _entry(module: str, name: str) -> str:
    thing = getattr(importlib.import_module(module), name)
    node = _found(thing)
    full = f"{module}.{name}"
    if isinstance(node, ast.ClassDef):
        return _class(node, full, thing)
    if node is not None:
        return _function(node, full, "###")
    if inspect.isclass(thing):
        return f"### {name}\n\n```text\n{full}\n```\n\nThe one of `{thing.__module__}`.\n"
    kind = type(thing).__name__
    return f"### {name}\n\n```text\n{full}\n```\n\nA `{kind}`.\n"


def python_api() -> str:
    """The page."""
    shown: dict[int, tuple[str, str]] = {}
    sections = []
    for module in ("servd", *(f"servd.{name}" for name in servd._MODULES), "servd.testing"):
        if module == _MODELS:
            continue
        loaded = importlib.import_module(module)
        entries, elsewhere = [], []
        for name in sorted(loaded.__all__):
            thing = getattr(loaded, name)
            if inspect.ismodule(thing):
                continue
            if id(thing) in shown:
                home, first = shown[id(thing)]
                elsewhere.append(f"[`{name}`](#{first.lower()}) of `{home}`")
                continue
            shown[id(thing)] = (module, name)
            entries.append(_entry(module, name))
        also = f"\nAlso here: {', '.join(elsewhere)}.\n" if elsewhere else ""
        intro = (loaded.__doc__ or "").strip().split("\n\n")[0]
        sections.append(f"## `{module}`\n\n{_escaped(intro)}\n{also}\n" + "\n".join(entries))
    return MADE + _INTRO + "\n".join(sections)
