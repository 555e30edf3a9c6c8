"""What of gRPC would fail on a Ray cluster: in the options of a document, and in methods."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from servd.engines.ray.code import CodeFile, Function
from servd.engines.ray.findings import Finding, Severity

_CONTEXT = "grpc_context"
_STREAM = "servd.grpc_util.gRPCInputStream", "ray.serve.grpc_util.gRPCInputStream"
_MISSING = {
    "time_remaining": "read the limit from `invocation_metadata()`, where the client has sent it",
    "compression": "keep what you have set",
}
"""Methods of the context that Ray's has not."""


def servicers_of(value: Mapping[str, Any]) -> bool:
    """Whether a document asks for methods of gRPC."""
    return bool((value.get("grpc_options") or {}).get("grpc_servicer_functions"))


def grpc_findings(file: CodeFile) -> Iterator[Finding]:
    """Of one file: its methods that get a call's context, or a client's stream."""
    for node in ast.walk(file.tree):
        if isinstance(node, Function):
            names = {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            if _CONTEXT in names:
                yield from _context(file, node)
            if isinstance(node, ast.FunctionDef):
                yield from _streams(file, node)


def _context(file: CodeFile, method: Function) -> Iterator[Finding]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr in _MISSING and _is_named(node.value, _CONTEXT):
            what = f"`{_CONTEXT}` has no `{node.attr}` there"
            yield Finding(file.path, node.lineno, Severity.FAILS, what, _MISSING[node.attr])


def _streams(file: CodeFile, method: ast.FunctionDef) -> Iterator[Finding]:
    streams = {one.arg for one in method.args.args if file.dotted(one.annotation) in _STREAM}
    for node in ast.walk(method):
        # `for` in it, or given to what does so, as in `list(requests)`
        if isinstance(node, ast.Name) and node.id in streams and isinstance(node.ctx, ast.Load):
            what = "the requests of a client come to asynchronous methods only there"
            yield Finding(file.path, node.lineno, Severity.FAILS, what, "write `async def` and `async for`")
            return


def _is_named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
