"""The page of all commands with all their options, from the commands themselves."""

import inspect
from enum import Enum
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo

from servd.cli import app
from tools.reference.tables import MADE, table

_INTRO = """# Every command and option

What `servd COMMAND --help` says, in one place. What the commands are for, which daemon they mean and what their exit codes say is in
[Command line](../cli.md). `servd --version` prints the version, `servd --debug COMMAND` shows tracebacks of errors.

"""
_KINDS = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def _parts(hint: Any) -> tuple[Any, Any]:
    """Type of one value and what typer was told of it."""
    kind, *told = get_args(hint)
    alternatives = [part for part in get_args(kind) if part is not type(None)] or [kind]
    kind = alternatives[0]
    return get_args(kind)[0] if get_args(kind) else kind, told[0]


def _names(name: str, about: Any) -> list[str]:
    # beside an annotation the first name stands where a default would
    first = [about.default] if isinstance(about.default, str) else []
    given = [word for text in (*first, *(about.param_decls or ())) for word in text.split("/")]
    return given or [f"--{name.replace('_', '-')}"]


def _value(kind: Any, about: Any, *, is_list: bool) -> str:
    if kind is bool:
        return ""
    if about.metavar:
        text = f"`{about.metavar}`"
    elif issubclass(kind, Enum):
        text = ", ".join(f"`{choice.value}`" for choice in kind)
    else:
        text = f"`{_KINDS[kind]}`"
    return text + (", may be repeated" if is_list else "")


def _default(value: Any) -> str:
    return (
        ""
        if value is None or value is False or value is inspect.Parameter.empty
        else f"`{getattr(value, 'value', value)}`"
    )


def _section(name: str, callback: Any, text: str) -> str:
    hints = get_type_hints(callback, include_extras=True)
    rows, arguments = [], []
    for parameter in inspect.signature(callback).parameters.values():
        hint = hints[parameter.name]
        if not hasattr(hint, "__metadata__"):
            # the context
            continue
        kind, about = _parts(hint)
        if isinstance(about, ArgumentInfo):
            arguments.append(about.metavar or parameter.name.upper())
        elif not about.hidden:
            is_list = "list[" in str(get_args(hint)[0])
            names = ", ".join(f"`{word}`" for word in _names(parameter.name, about))
            rows.append((names, _value(kind, about, is_list=is_list), _default(parameter.default), about.help or ""))
    usage = " ".join(["servd", name, *(["[OPTIONS]"] if rows else []), *arguments])
    return f"## {name}\n\n{text}\n\n```text\n{usage}\n```\n" + (
        "\n" + table(("Option", "Value", "Default", ""), rows) if rows else ""
    )


def command_line() -> str:
    """The page."""
    commands = {info.name or info.callback.__name__: info for info in app.registered_commands if info.callback}
    sections = [_section(name, info.callback, info.help or "") for name, info in sorted(commands.items())]
    return MADE + _INTRO + "\n".join(sections)
