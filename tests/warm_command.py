"""`servd ...` in a process forked from one that has imported it already.

What a command does, prints and ends with is the same; the half second of its imports is paid once for all tests of a
worker. Where the process itself is the subject (its start, signals, what it imports), tests start a fresh interpreter.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from servd import cli

_MODULES = (
    "servd.commands.verbs",
    "servd.commands.run",
    "servd.documents.control_plane",
    "servd.config",
    "servd.api",
    "yaml",
)


def servd_command(
    arguments: tuple[str, ...], folder: Path, environment: dict[str, str], text: str = "", limit_s: float = 60.0
) -> tuple[int, str, str]:
    """Run `servd ARGUMENTS`; gives exit code, stdout and stderr.

    Args:
        text: its stdin.

    Raises:
        TimeoutError: it ran longer; it is killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_MODULES])
    with tempfile.TemporaryDirectory() as files:
        paths = [os.path.join(files, name) for name in ("in", "out", "err")]
        Path(paths[0]).write_text(text)
        process = context.Process(target=_run, args=(arguments, str(folder), environment, paths))
        process.start()
        process.join(limit_s)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        process.close()
        out, err = (Path(path).read_text() for path in paths[1:])
    if code is None:
        raise TimeoutError(f"servd {' '.join(arguments)} ran longer than {limit_s} s: {out}{err}")
    return code, out, err


def _run(arguments: tuple[str, ...], folder: str, environment: dict[str, str], paths: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(paths):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = (open(fd, mode, closefd=False) for fd, mode in enumerate("rww"))  # noqa: SIM115 - they live as long as the process
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["servd", *arguments]
    cli.main()
