"""The commands that know other engines. Each one imports what it needs when it runs."""

import os
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from servd.commands.cli_options import Address, ConfigFile, Form, StateDir, TableFormat, fail, must_exist

if TYPE_CHECKING:
    from servd.engines.ray.cluster import Cluster
    from servd.engines.ray.findings import Finding

app = typer.Typer()

EXIT_DIFFERS = 3
"""1 and 2 are errors whatever the command."""


ENGINE_VARIABLE = "SERVD_ENGINE"
OWN_COMMANDS = frozenset(
    {"run", "history", "prune", "rollback", "upgrade", "scale", "logs", "errors", "stack", "top", "open"}
)
"""Commands that ask a daemon and know no other engine."""


class Engine(StrEnum):
    """What runs an application."""

    SERVD = "servd"
    RAY = "ray"


WithEngine = Annotated[
    Engine,
    typer.Option("--engine", envvar=ENGINE_VARIABLE, show_envvar=False, help="What runs it."),
]
NoBuild = Annotated[bool, typer.Option("--no-build", help="For ray: list only the deployments that the file names.")]
Force = Annotated[bool, typer.Option("--force", help="For ray: also what would fail there.")]


def cluster_at(address: str | None, state_dir: str | None) -> "Cluster":
    """The Ray cluster that a command means."""
    from servd.engines.ray.cluster import Cluster, cluster_address

    if state_dir is not None:
        fail("--state-dir is about a daemon of servd; a Ray cluster is named by -a http://HEAD:8265")
    return Cluster(cluster_address(address))


def check_engine(command: str | None) -> None:
    """End a command that is about servd's daemon alone where the environment means another engine."""
    if command in OWN_COMMANDS and os.environ.get(ENGINE_VARIABLE, "") not in ("", Engine.SERVD):
        fail(
            f"`servd {command}` is about a daemon of servd, and {ENGINE_VARIABLE} says otherwise: unset it for this command"
        )


def ray_commands() -> Any:
    """What the commands do with a Ray cluster."""
    from servd.engines.ray import cluster_commands

    return cluster_commands


@app.command(help="Compare a config file with what is deployed.")
def diff(
    path: ConfigFile,
    address: Address = None,
    state_dir: StateDir = None,
    form: TableFormat = Form.TABLE,
    exit_code: Annotated[bool, typer.Option("--exit-code", help=f"Exit {EXIT_DIFFERS} if they differ.")] = False,
    engine: WithEngine = Engine.SERVD,
    no_build: NoBuild = False,
) -> None:
    """Nothing is changed."""
    must_exist(path)
    if engine == Engine.RAY:
        differs = ray_commands().show_diff(cluster_at(address, state_dir), path, form, builds=not no_build)
    else:
        from servd.commands.operations import show_diff
        from servd.daemon.admin_client import AdminClient, find_address

        differs = show_diff(AdminClient(find_address(address, state_dir)), path, form)
    if differs and exit_code:
        raise typer.Exit(EXIT_DIFFERS)


@app.command(help="Check a config file, without a daemon.")
def validate(path: ConfigFile, engine: WithEngine = Engine.SERVD) -> None:
    """Every fault with file, line and column. With `--engine ray` also what would fail or differ on a Ray cluster."""
    must_exist(path)
    if engine == Engine.SERVD:
        from servd.commands.operations import validate as check

        check(path)
        return
    from servd.engines.ray.check import check_code, check_document, read
    from servd.engines.ray.findings import exit_code

    found = check_code(path) if path.endswith(".py") else check_document(read(path))
    for one in found:
        print(one)
    print(summary(path, found))
    raise typer.Exit(exit_code(found))


def summary(path: str, found: "Iterable[Finding]") -> str:
    """One line: what a check came to."""
    from servd.engines.ray.findings import Severity

    severities = [one.severity for one in found]
    if Severity.FAILS in severities:
        verdict = "fails on a Ray cluster"
    elif {Severity.DIFFERS, Severity.DROPPED} & set(severities):
        verdict = "works on a Ray cluster, with differences"
    else:
        verdict = "works on a Ray cluster"
    counts = [f"{severities.count(one)} {one}" for one in Severity if one in severities]
    return f"{path} {verdict}{': ' + ', '.join(counts) if counts else ''}."


@app.command(help="Print a config file as a Ray cluster or Kubernetes takes it.")
def export(
    path: ConfigFile,
    kuberay: Annotated[
        str | None, typer.Option(metavar="NAME", help="As a RayService of KubeRay.", show_default=False)
    ] = None,
    kubernetes: Annotated[
        str | None, typer.Option(metavar="NAME", help="As a Deployment, one servd a pod.", show_default=False)
    ] = None,
    image: Annotated[str | None, typer.Option(help="Of the containers.", show_default=False)] = None,
    code: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where the code is: local:///DIR, or a zip.", show_default=False),
    ] = None,
    no_build: Annotated[
        bool, typer.Option("--no-build", help="List only the deployments that the file names.")
    ] = False,
) -> None:
    """YAML on stdout, on stderr what would fail, be dropped or differ there; exit 1 where something would fail."""
    from servd.engines.ray import export as exports
    from servd.engines.ray.check import read
    from servd.engines.ray.findings import EXIT_FAILS, Severity, exit_code

    must_exist(path)
    _check_targets(kuberay, kubernetes, image, code)
    document = read(path)
    wish = exports.ExportWish(code or "", image or "", builds=not no_build)
    if kuberay is not None:
        text, found = exports.kuberay(document, kuberay, wish)
    elif kubernetes is not None:
        text, found = exports.kubernetes(document, kubernetes, wish)
    else:
        text, found = exports.ray_document(document, wish)
    for one in found:
        if one.severity != Severity.TRANSLATED:
            print(one, file=sys.stderr)
    print(text)
    if exit_code(found) == EXIT_FAILS:
        raise typer.Exit(EXIT_FAILS)


def _check_targets(kuberay: str | None, kubernetes: str | None, image: str | None, code: str | None) -> None:
    if kuberay is not None and kubernetes is not None:
        fail("--kuberay and --kubernetes exclude each other: give one of them")
    if (kuberay is None and kubernetes is None) != (image is None):
        fail("--image belongs to --kuberay and --kubernetes, which need it")
    if code is not None and not code.startswith(("local:///", "https://", "http://", "s3://", "gs://", "file:///")):
        fail(f"--code {code!r} must be local:///DIR, which every node has, or the URI of a zip")
