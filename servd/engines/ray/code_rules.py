"""What of a file would fail, be dropped or behave differently on a Ray cluster: imports, names and options.

How this works: each rule is a generator over a parsed file; what its expressions mean is known from the imports alone.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from servd.engines.ray import removed
from servd.engines.ray.code import CodeFile, DeploymentCode
from servd.engines.ray.findings import Finding, Severity
from servd.engines.ray.grpc_rules import grpc_findings
from servd.engines.ray.handler_rules import handler_findings

_FAILS, _DROPPED, _DIFFERS, _TRANSLATED = Severity.FAILS, Severity.DROPPED, Severity.DIFFERS, Severity.TRANSLATED
_ERA_TARGET, _TARGET = "target_num_ongoing_requests_per_replica", "target_ongoing_requests"
_METRICS = tuple(
    f"{home}.{kind}"
    for home in ("ray.serve.metrics", "ray.util.metrics", "servd.metrics")
    for kind in ("Counter", "Gauge", "Histogram")
)
_OTHER_METRICS = (
    "the metric is named `ray_...` there, `..._total` where it counts, and has more labels",
    "write queries and alerts for both names",
)
_ANY_REPLICA = "requests of one model may reach several replicas there, each of which loads it"
_STARTS = ("run", "run_many", "start")


@dataclass(frozen=True)
class Surroundings:
    """What else is known of an application.

    apps: names of applications. with_cpus: deployments whose `num_cpus` the document gives. is_uploaded: whether its code is
    sent to the cluster, which forgets it ten minutes after the last process that used it.
    """

    apps: tuple[str, ...] = ()
    with_cpus: frozenset[str] = frozenset()
    is_uploaded: bool = False


Rule = Iterator[Finding]


def code_findings(files: Iterable[CodeFile], around: Surroundings) -> Rule:
    """Everything that a scan of an application's files shows."""
    known = list(files)
    full_names = _full_names(known, around.apps)
    for file in known:
        if file.is_servds:
            yield from _of_servd(file, around)
            continue
        yield from _imports(file)
        yield from _names(file)
        yield from _calls(file)
        yield from _applications(file)
        yield from _strings(file, full_names)
        yield from _late_routes(file)
        for deployment in file.deployments.values():
            yield from _options(file, deployment, around)
        yield from handler_findings(file)
        yield from grpc_findings(file)


def _of_servd(file: CodeFile, around: Surroundings) -> Rule:
    """What servd's own package cannot make the same there."""
    for node in ast.walk(file.tree):
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        for one in decorators:
            if file.dotted(one.func if isinstance(one, ast.Call) else one) == "servd.multiplexed":
                yield Finding(file.path, one.lineno, _DIFFERS, _ANY_REPLICA)
        meaning = file.dotted(node.func) if isinstance(node, ast.Call) else ""
        if meaning in _METRICS:
            yield Finding(file.path, node.lineno, _DIFFERS, *_OTHER_METRICS)  # type: ignore[attr-defined]
        elif meaning in {f"servd.{name}" for name in _STARTS}:
            what = f"`{meaning}` is refused there"
            yield Finding(file.path, node.lineno, _DIFFERS, what, "deploy a document")  # type: ignore[attr-defined]
    for deployment in file.deployments.values():
        preload = deployment.option("preload")
        if preload is not None and not (isinstance(preload, ast.Constant) and not preload.value):
            what = (
                "`preload` has no effect there: each replica constructs an instance of its own, with memory of its own"
            )
            yield Finding(file.path, preload.lineno, _DIFFERS, what)
        router = _items(deployment.option("request_router_config"))
        name = router.get("request_router_class")
        if isinstance(name, ast.Constant) and removed.is_by_text({"request_router_class": str(name.value)}):
            yield Finding(file.path, name.lineno, _DIFFERS, removed.TEXTS)
        yield from _reservations(file, deployment, around)


def _imports(file: CodeFile) -> Rule:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = file.absolute(node)
            if module in removed.MODULES:
                yield from _import(file, node.lineno, module)
                continue
            for alias in node.names:
                yield from _import(file, node.lineno, f"{module}.{alias.name}")


def _import(file: CodeFile, line: int, name: str) -> Rule:
    if name in removed.MODULES:
        yield Finding(file.path, line, _FAILS, f"today's Ray has no {name}", removed.MODULES[name])
    elif name in removed.NAMES:
        yield Finding(file.path, line, _FAILS, f"today's Ray has no {name}", removed.NAMES[name])


def _names(file: CodeFile) -> Rule:
    """`serve.get_deployment` and the like; attributes that deployments had."""
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Attribute):
            continue
        meaning = file.dotted(node)
        if meaning in removed.NAMES:
            yield Finding(file.path, node.lineno, _FAILS, f"today's Ray has no {meaning}", removed.NAMES[meaning])
        if (
            isinstance(node.value, ast.Name)
            and node.value.id in file.deployments
            and node.attr in removed.DEPLOYMENT_ATTRIBUTES
        ):
            what = f"a deployment has no `{node.attr}` in today's Ray"
            yield Finding(file.path, node.lineno, _FAILS, what, removed.DEPLOYMENT_ATTRIBUTES[node.attr])


def _calls(file: CodeFile) -> Rule:
    knows_serve = any(one.partition(".")[0] in ("ray", "servd") for one in file.names.values())
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call):
            continue
        meaning = file.dotted(node.func).replace("servd.", "ray.serve.", 1)
        line = node.lineno
        given = {keyword.arg for keyword in node.keywords}
        if meaning == "ray.get":
            instead = "`await` the response, or call its `.result()`"
            yield Finding(file.path, line, _FAILS, "`ray.get` takes no response of a handle in today's Ray", instead)
        elif meaning == "ray.serve.batch":
            if "on_error" in given:
                instead = "leave it out, or try the halves again in the function"
                yield Finding(file.path, line, _FAILS, "`batch` has no `on_error` there", instead)
            if "batch_wait_timeout_s" not in given and len(node.args) < 2:
                what, instead = "batches wait up to 0.01 s there, 0 s here", "write `batch_wait_timeout_s=0.0`"
                yield Finding(file.path, line, _DIFFERS, what, instead)
        elif meaning in {f"ray.serve.{name}" for name in _STARTS}:
            what = "a program that starts Serve puts its own folder before the code of everything deployed later"
            yield Finding(file.path, line, _DIFFERS, what, "deploy a document")
        elif meaning == "ray.serve.config.AutoscalingConfig":
            yield from _scaling(file, {keyword.arg or "": keyword.value for keyword in node.keywords}, line)
        elif knows_serve and isinstance(node.func, ast.Attribute) and node.func.attr == "options":
            yield from _option_names(file, node)
        elif meaning in _METRICS:
            yield Finding(file.path, line, _DIFFERS, *_OTHER_METRICS)
    for node in ast.walk(file.tree):
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        for decorator in decorators:
            named = decorator.func if isinstance(decorator, ast.Call) else decorator
            meaning = file.dotted(named)
            if meaning in ("ray.serve.multiplexed", "servd.multiplexed"):
                yield Finding(file.path, decorator.lineno, _DIFFERS, _ANY_REPLICA)
            if meaning in ("ray.serve.batch", "servd.batch") and not isinstance(decorator, ast.Call):
                what = "batches wait up to 0.01 s there, 0 s here"
                yield Finding(file.path, decorator.lineno, _DIFFERS, what, "write `batch(batch_wait_timeout_s=0.0)`")


def _applications(file: CodeFile) -> Rule:
    """`app.method.bind(...)`: an application of today has no attributes."""
    bound = {
        target.id
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Assign) and _is_bind(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(file.tree):
        if not _is_bind(node):
            continue
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        owner = node.func.value
        if isinstance(owner, ast.Attribute):
            of = owner.value
            if _is_bind(of) or (isinstance(of, ast.Name) and of.id in bound):
                what = f"a bound deployment has no `.{owner.attr}` in today's Ray"
                instead = "give the bound deployment to the constructor of one that calls it"
                yield Finding(file.path, node.lineno, _FAILS, what, instead)


def _is_bind(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bind"


def _late_routes(file: CodeFile) -> Rule:
    """What is added to an ASGI app after `ingress` has taken it: on a cluster that was a copy."""
    taken: set[str] = set()
    for node in file.tree.body:
        expression = node.value if isinstance(node, ast.Expr) else None
        decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        for call in [expression, *decorators]:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                owner = call.func.value
                if isinstance(owner, ast.Name) and owner.id in taken:
                    what = f"`{owner.id}.{call.func.attr}` has no effect there after `ingress({owner.id})`"
                    yield Finding(file.path, call.lineno, _FAILS, what, "move it above the class")
        for one in node.decorator_list if isinstance(node, ast.ClassDef) else []:
            if isinstance(one, ast.Call) and file.dotted(one.func) in ("ray.serve.ingress", "servd.ingress"):
                taken |= {name.id for name in one.args if isinstance(name, ast.Name)}


def _full_names(files: Iterable[CodeFile], apps: Iterable[str]) -> dict[str, str]:
    """Full name, as servd and earlier releases have them, -> bare name, of all deployments and applications that are named."""
    bare, owners = set(), set(apps)
    for file in files:
        bare |= {one.name for one in file.deployments.values() if one.name}
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Call):
                of_serve = file.dotted(node.func).startswith(("ray.serve.", "servd."))
                owners |= {
                    keyword.value.value
                    for keyword in node.keywords
                    if (keyword.arg == "app_name" or (of_serve and keyword.arg == "name"))
                    and isinstance(keyword.value, ast.Constant)
                    and isinstance(keyword.value.value, str)
                }
    return {f"{app}_{name}": name for app in owners for name in bare}


def _strings(file: CodeFile, full_names: dict[str, str]) -> Rule:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in full_names:
            bare = full_names[node.value]
            what = f"no deployment is named {node.value!r} there, its application's name is no part of it"
            yield Finding(file.path, node.lineno, _FAILS, what, f"write {bare!r}")


def _options(file: CodeFile, deployment: DeploymentCode, around: Surroundings) -> Rule:
    if deployment.call is not None:
        yield from _option_names(file, deployment.call)
    scaling = deployment.option("autoscaling_config")
    if isinstance(scaling, ast.Dict):
        yield from _scaling(file, _items(scaling), scaling.lineno)
    yield from _actor_options(file, deployment.option("ray_actor_options"))
    yield from _reservations(file, deployment, around)


def _reservations(file: CodeFile, deployment: DeploymentCode, around: Surroundings) -> Rule:
    """CPUs of its replicas, how many it may have and who says so."""
    call, target = deployment.call, deployment.target
    line = call.lineno if call else target.lineno if target else 1
    is_new = not (call and isinstance(call.func, ast.Attribute) and call.func.attr == "options")
    scaling = deployment.option("autoscaling_config")
    if scaling is not None:
        found = _items(scaling)
        if around.is_uploaded and _is_zero(found.get("min_replicas")):
            yield Finding(file.path, scaling.lineno, _FAILS, SCALED_TO_ZERO, SCALED_TO_ZERO_INSTEAD)
        if "policy" in found:
            yield Finding(file.path, found["policy"].lineno, _DIFFERS, removed.POLICY, removed.POLICY_INSTEAD)
    options = deployment.option("ray_actor_options")
    # one that is computed may hold anything
    is_open = options is not None and not isinstance(options, ast.Dict)
    gives_cpus = is_open or (options is not None and "num_cpus" in _items(options))
    if is_new and not gives_cpus and deployment.name not in around.with_cpus:
        name = deployment.name or "the deployment"
        what = f"each replica of {name} reserves 1 CPU there, and waits for ever where none is left"
        yield Finding(file.path, line, _DIFFERS, what, "give `num_cpus` in `ray_actor_options`")


def _option_names(file: CodeFile, call: ast.Call) -> Rule:
    for keyword in call.keywords:
        at, name = keyword.value.lineno, keyword.arg or ""
        if name in removed.OPTIONS:
            what = f"today's Ray has no option `{name}` of a deployment"
            yield Finding(file.path, at, _FAILS, what, removed.OPTIONS[name])
        elif name in removed.OWN_OPTIONS:
            what = f"Ray has no option `{name}` of a deployment"
            yield Finding(file.path, at, _FAILS, what, removed.OWN_OPTIONS[name])
        elif name == "request_router_config":
            yield from _router(file, keyword.value)


def _router(file: CodeFile, config: ast.expr) -> Rule:
    given = _items(config).get("request_router_class")
    name = given.value if isinstance(given, ast.Constant) else None
    if given is not None and isinstance(name, str) and name in removed.ROUTERS:
        what = f"Ray takes no router by the name `{name}`"
        yield Finding(file.path, given.lineno, _FAILS, what, f'write "{removed.ROUTERS[name]}", which servd takes too')


SCALED_TO_ZERO = (
    "code that was uploaded is forgotten while no replica runs: with `min_replicas: 0` the next request hangs"
)
SCALED_TO_ZERO_INSTEAD = "keep one replica, or put the code into the image or at an https: URI"


def _actor_options(file: CodeFile, options: ast.expr | None) -> Rule:
    for name, value in _items(options).items():
        if name in removed.ACTOR_OPTIONS:
            what = f"Ray refuses `{name}` in `ray_actor_options`"
            yield Finding(file.path, value.lineno, _FAILS, what, removed.ACTOR_OPTIONS[name])
        if name == "runtime_env":
            what = (
                "a runtime_env in code drops env_vars, pip and py_modules of the application's there, unless the "
                "document lists the deployment"
            )
            yield Finding(file.path, value.lineno, _TRANSLATED, what)
        variables = _items(value).get("env_vars") if name == "runtime_env" else value if name == "env_vars" else None
        for key, item in _items(variables).items():
            if isinstance(item, ast.Constant) and not isinstance(item.value, str):
                yield Finding(file.path, item.lineno, _FAILS, f"the variable {key} is no string", "quote it")


def _scaling(file: CodeFile, found: dict[str, ast.expr], line: int) -> Rule:
    if _ERA_TARGET in found:
        what = f"`{_ERA_TARGET}` is ignored there without a word: 2 applies"
        yield Finding(file.path, found[_ERA_TARGET].lineno, _DROPPED, what, f"write `{_TARGET}`")
    elif _TARGET not in found and "" not in found:
        what = f"without `{_TARGET}` it is 2 there, 1 here"
        yield Finding(file.path, line, _TRANSLATED, what)


def _items(node: ast.expr | None) -> dict[str, ast.expr]:
    """Keys and values of a dictionary, or keywords of a call, as far as they are written out."""
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {
            key.value: value for key, value in pairs if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
    if isinstance(node, ast.Call):
        return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return {}


def _is_zero(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0
