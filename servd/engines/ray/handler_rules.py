"""What the handlers of a file do that is otherwise on a Ray cluster: threads, generators, requests through handles, two steps."""

import ast
from collections.abc import Iterator

from servd.engines.ray.code import CodeFile, DeploymentCode, Function
from servd.engines.ray.findings import Finding, Severity

_HOOKS = frozenset({"reconfigure", "check_health", "on_replica_start"})
_REQUESTS = ("request", "req")
_TWO_STEPS = "a response is awaited once in today's Ray: the second `await` gets a value"
_PLAIN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def handler_findings(file: CodeFile) -> Iterator[Finding]:
    """Of one file: its deployments, and what any function in it does with handles."""
    seen: set[int] = set()
    for deployment in file.deployments.values():
        if deployment.target is not None and id(deployment.target) not in seen:
            seen.add(id(deployment.target))
            yield from _deployment(file, deployment)
    for node in ast.walk(file.tree):
        if isinstance(node, Function):
            yield from _two_steps(file, node)
            yield from _requests_through_handles(file, node)


def _deployment(file: CodeFile, deployment: DeploymentCode) -> Iterator[Finding]:
    target = deployment.target
    if isinstance(target, Function):
        handler: Function | None = target
        methods = [target]
    else:
        methods = [node for node in target.body if isinstance(node, Function)] if target else []
        handler = next((node for node in methods if node.name == "__call__"), None)
    names = {node.name: node for node in methods}
    if handler is not None and _takes_request(handler):
        generators = {name for name, node in names.items() if _yields(node)}
        for line in _streams(handler, generators):
            what = "a generator is no answer over HTTP there, every request fails with 500"
            instead = "return `StreamingResponse(...)` of it"
            yield Finding(file.path, line, Severity.FAILS, what, instead)
    if "on_replica_start" in names:
        line = names["on_replica_start"].lineno
        what, instead = "`on_replica_start` is never called there", "call it in the constructor"
        yield Finding(file.path, line, Severity.DROPPED, what, instead)
    is_asgi = isinstance(target, ast.ClassDef) and any(
        isinstance(one, ast.Call) and file.dotted(one.func) in ("ray.serve.ingress", "servd.ingress")
        for one in target.decorator_list
    )
    for method in methods:
        is_public = method.name == "__call__" or not method.name.startswith("_")
        is_plain = isinstance(method, ast.FunctionDef) and not _yields(method)
        # routes of an ASGI app run on threads here too
        is_route = is_asgi and bool(method.decorator_list)
        if is_public and is_plain and not is_route and method.name not in _HOOKS:
            what = (
                f"`{deployment.name or method.name}` may run up to `max_ongoing_requests` synchronous calls at a time there, "
                "on threads; here one, or `max_sync_threads`"
            )
            instead = "guard shared state with a lock, or lower `max_ongoing_requests`"
            yield Finding(file.path, method.lineno, Severity.DIFFERS, what, instead)
            return


def _takes_request(handler: Function) -> bool:
    """Whether the handler is meant for HTTP, as far as one can tell: it takes nothing, or a request by name or annotation."""
    parameters = [one for one in (*handler.args.posonlyargs, *handler.args.args) if one.arg != "self"]
    if not parameters:
        return True
    return _is_request(parameters[0])


def _is_request(parameter: ast.arg) -> bool:
    note = parameter.annotation
    if note is None:
        return parameter.arg in _REQUESTS
    text = note.value if isinstance(note, ast.Constant) and isinstance(note.value, str) else ast.unparse(note)
    return text.rpartition(".")[2] == "Request"


def _own_nodes(function: Function | ast.Lambda) -> Iterator[ast.AST]:
    """Nodes of a function, not those of functions in it."""
    waiting: list[ast.AST] = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _PLAIN):
            waiting += ast.iter_child_nodes(node)


def _yields(function: Function) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _own_nodes(function))


def _streams(handler: Function, generators: set[str]) -> Iterator[int]:
    """Lines on which the handler answers with a generator."""
    if _yields(handler):
        yield handler.lineno
    for node in _own_nodes(handler):
        value = node.value if isinstance(node, ast.Return) else None
        if isinstance(value, ast.GeneratorExp):
            yield node.lineno  # type: ignore[attr-defined]
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            owner = value.func.value
            if isinstance(owner, ast.Name) and owner.id == "self" and value.func.attr in generators:
                yield value.lineno


def _is_remote(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "remote"


def _sends(node: ast.AST | None) -> bool:
    """Whether this gives what is left of a call after its first `await`: one of them, or a list of such."""
    if isinstance(node, ast.Await):
        return _is_remote(node.value)
    return isinstance(node, ast.ListComp) and _sends(node.elt)


def _two_steps(file: CodeFile, function: Function) -> Iterator[Finding]:
    """`ref = await handle.remote(...)`, then `await ref`; also in lists."""
    nodes = list(_own_nodes(function))
    sent: set[str] = set()
    for node in nodes:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if targets and _sends(node.value):  # type: ignore[attr-defined]
            sent |= {target.id for target in targets if isinstance(target, ast.Name)}
    # of a list, what a comprehension or a loop takes from it
    for node in nodes:
        if isinstance(node, ast.comprehension | ast.For) and isinstance(node.iter, ast.Name) and node.iter.id in sent:
            sent |= {node.target.id} if isinstance(node.target, ast.Name) else set()
    for node in nodes:
        if isinstance(node, ast.Await):
            is_name = isinstance(node.value, ast.Name) and node.value.id in sent
            if is_name or (isinstance(node.value, ast.Await) and _is_remote(node.value.value)):
                yield Finding(file.path, node.lineno, Severity.FAILS, _TWO_STEPS, "leave one of the two `await` out")


def _requests_through_handles(file: CodeFile, function: Function) -> Iterator[Finding]:
    parameters = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    requests = {one.arg for one in parameters if _is_request(one)}
    for node in _own_nodes(function):
        if not _is_remote(node):
            continue
        assert isinstance(node, ast.Call)
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        if any(isinstance(one, ast.Name) and one.id in requests for one in given):
            what = "a request does not travel through a handle there"
            yield Finding(file.path, node.lineno, Severity.FAILS, what, "pass what the other deployment needs of it")
