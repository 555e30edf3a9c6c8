"""YAML and JSON documents from disk, with line and column of every fault, and their relative paths made absolute."""

import json
import math
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from servd.documents import runtime_env
from servd.exceptions import ConfigError

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_NODES = 200_000
"""Values in a document after its aliases are expanded; a few lines of aliases can stand for billions."""

NEWLINE = b"\n"
EXTENSIONS = (".yaml", ".yml", ".json")


def is_document_path(argument: str) -> bool:
    """Whether a command-line argument means a file rather than an import path.

    An existing file is one; so is what contains `/` or ends with `.yaml`, `.yml` or `.json`.
    """
    return "/" in argument or argument.endswith(EXTENSIONS) or os.path.isfile(argument)


class DocumentFile:
    """A parsed document that knows where each of its values stands. value: as JSON would give it."""

    def __init__(self, name: str, value: Any, root: yaml.Node) -> None:
        self.name, self.value = name, value
        self._root = root
        self._shift = 0, 0

    def lies_in(self, outer: "DocumentFile", data: bytes, text: str) -> None:
        """This one is `text` at `spec.serveConfigV2` of another: say places of the whole file, where its lines are the file's."""
        node = _value_at(_value_at(outer._root, "spec"), "serveConfigV2")
        if not isinstance(node, yaml.ScalarNode) or node.style != "|":
            return
        first = node.start_mark.line + 1
        lines = data.decode("utf-8-sig").splitlines()[first:]
        number, written = next((number, line) for number, line in enumerate(text.splitlines()) if line.strip())
        if number < len(lines) and lines[number].endswith(written):
            self._shift = first, lines[number].index(written)
            self.name = outer.name

    def place(self, loc: Sequence[str | int]) -> str:
        """`name:line:column` of the value at `loc` (keys and indexes), or of the nearest one around it."""
        node, mark = self._root, self._root.start_mark
        for key in loc:
            if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                mark = node.start_mark
                continue
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            found = _pair_of(pairs, str(key))
            if found is None:
                break
            mark, node = found[0].start_mark, found[1]
        return f"{self.name}:{mark.line + 1 + self._shift[0]}:{mark.column + 1 + self._shift[1]}"


def _pair_of(pairs: Iterable[tuple[yaml.Node, yaml.Node]], key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """The last one of that key: what merge keys bring in comes before what stands there itself, which counts."""
    return next((pair for pair in reversed([*pairs]) if pair[0].value == key), None)


def _value_at(node: yaml.Node | None, name: str) -> yaml.Node | None:
    found = _pair_of(node.value, name) if isinstance(node, yaml.MappingNode) else None
    return found[1] if found is not None else None


def load_document(path: str) -> DocumentFile:
    """The document in a YAML or JSON file.

    Raises:
        ConfigError: missing, unreadable, too large, or faulty; names file, line and column.
    """
    if path.endswith(".py"):
        raise ConfigError(f"{path} is code, no config file: give an import path, such as {Path(path).stem}:app")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return _unwrapped(parse_document(data, path), data)


def _unwrapped(file: DocumentFile, data: bytes) -> DocumentFile:
    """The Serve config of a RayService of KubeRay; any other document itself."""
    value = file.value
    if not isinstance(value, dict) or value.get("kind") != "RayService":
        return file
    spec = value.get("spec")
    text = spec.get("serveConfigV2") if isinstance(spec, dict) else None
    if not isinstance(text, str):
        place = file.place(("spec", "serveConfigV2"))
        raise ConfigError(f"{place}: spec.serveConfigV2 of a RayService must be the text of a Serve config")
    inner = parse_document(text.encode("utf-8", "surrogatepass"), f"{file.name}: spec.serveConfigV2")
    inner.lies_in(file, data, text)
    return inner


def parse_document(data: bytes, name: str) -> DocumentFile:
    """The document in `data`; `name` stands for it in errors.

    Raises:
        ConfigError: no UTF-8, no YAML, a duplicate key, a value that JSON cannot hold, or aliases that expand
            without bound.
    """
    loader = None
    try:
        text = data.decode("utf-8-sig")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{name}:1:1: the document is empty")
        loader.check_size(node)
        return DocumentFile(name, loader.construct_document(node), node)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}:{_place(data, error.start)}: not UTF-8: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        place = _place(text.encode(), len(text[: error.position].encode()))
        raise ConfigError(f"{name}:{place}: {error.reason}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _place(data: bytes, offset: int) -> str:
    return f"{data.count(NEWLINE, 0, offset) + 1}:{offset - data.rfind(NEWLINE, 0, offset)}"


class _Loader(yaml.SafeLoader):
    """Values as JSON knows them: string keys, no duplicates, no dates, no circles."""

    def check_size(self, root: yaml.Node) -> None:
        """Refuse foreign tags, circles and explosions before anything is built.

        Counts every value as often as it will appear; sizes of shared nodes are computed once.
        """
        sizes: dict[int, int] = {}
        open_nodes: set[int] = set()

        def size(node: yaml.Node) -> int:
            key = id(node)
            if key in sizes:
                return sizes[key]
            if key in open_nodes:
                raise _fault("an alias refers to itself", node)
            if node.tag not in _TAGS:
                raise _fault(f"the tag {node.tag!r} has no place in a document", node)
            open_nodes.add(key)
            total = 1 + sum(size(child) for child in _children(node))
            if total > MAX_NODES:
                raise _fault(f"aliases expand to more than {MAX_NODES} values", node)
            open_nodes.discard(key)
            sizes[key] = total
            return total

        size(root)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class; keys become strings as in JSON, and none may come twice."""
        seen: dict[str, yaml.Mark] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fault("a key must be a plain value", key_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = _json_key(self.construct_object(key_node))
            if key in seen:
                first = seen[key]
                place = f"line {first.line + 1} column {first.column + 1}"
                raise _fault(f"duplicate key {key!r}, first seen in {place}", key_node)
            seen[key] = key_node.start_mark
        self.flatten_mapping(node)
        return {
            _json_key(self.construct_object(key)): self.construct_object(value, deep=deep) for key, value in node.value
        }

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A string; JSON escapes of two surrogates become the one character they mean."""
        text = str(self.construct_scalar(node))
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _fault("a lone surrogate is no character", node) from None

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """A finite number."""
        number = self.construct_yaml_float(node)
        if not math.isfinite(number):
            raise _fault(f"{node.value} is no JSON number", node)
        return number


def _fault(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _json_key(key: Hashable) -> str:
    return key if isinstance(key, str) else json.dumps(key)


_PREFIX = "tag:yaml.org,2002:"
_TAGS = {_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_Loader.add_constructor(_PREFIX + "str", _Loader.construct_text)
_Loader.add_constructor(_PREFIX + "float", _Loader.construct_number)
# dates would not survive the way to JSON: keep what was written
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def resolve_paths(document: Any, folder: str) -> Any:
    """A copy with relative `working_dir` and `py_modules` of every runtime_env made absolute against `folder`."""
    if not isinstance(document, dict):
        return document
    result = dict(document)
    if isinstance(result.get("runtime_env"), dict):
        result["runtime_env"] = resolve_env(result["runtime_env"], folder)
    for key in ("applications", "deployments"):
        if isinstance(result.get(key), list):
            result[key] = [resolve_paths(item, folder) for item in result[key]]
    options = result.get("ray_actor_options")
    if isinstance(options, dict) and isinstance(options.get("runtime_env"), dict):
        result["ray_actor_options"] = {**options, "runtime_env": resolve_env(options["runtime_env"], folder)}
    return result


def resolve_env(env: dict[str, Any], folder: str) -> dict[str, Any]:
    """A copy of one environment with its relative paths made absolute against `folder`."""
    result = dict(env)
    if isinstance(result.get("working_dir"), str):
        result["working_dir"] = resolve_path(result["working_dir"], folder)
    if isinstance(result.get("py_modules"), list):
        result["py_modules"] = [
            resolve_path(module, folder) if isinstance(module, str) else module for module in result["py_modules"]
        ]
    return result


def resolve_path(path: str, folder: str) -> str:
    """`path` itself if it is absolute or a URI, else the absolute path it means in `folder`; `~` is the home."""
    if runtime_env.has_scheme(path):
        return path
    return os.path.normpath(Path(folder).absolute() / os.path.expanduser(path))


def dump_yaml(document: Any) -> str:
    """Block style, keys as they are, multi-line strings literal; no newline at the end."""
    return yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6
    ).rstrip("\n")


def dump_spaced_yaml(document: Any, levels: int) -> str:
    """As `dump_yaml`, with a blank line between the entries of the outer `levels` levels."""

    class Spaced(_Dumper):
        def write_line_break(self, data: str | None = None) -> None:
            super().write_line_break(data)
            if len(self.indents) <= levels:
                super().write_line_break()

    return yaml.dump(
        document, Dumper=Spaced, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6
    ).rstrip("\n")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        # YAML cannot hold trailing blanks in literal style: they would force quotes and one long line
        lines = "\n".join(line.rstrip() for line in text.expandtabs(4).split("\n"))
        return dumper.represent_scalar("tag:yaml.org,2002:str", lines, style="|")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text)


_Dumper.add_representer(str, _represent_text)
