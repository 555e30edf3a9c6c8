"""What to do about errors whose text says little to who meets them first. Pure; standard library only."""

import errno
import os
import re

from servd.observability.described import full_name_of, text_of

_LONGEST = 10_000
# what the interpreter keeps there, past any code of the error's own class
_NAME, _FILENAME, _ERRNO = vars(ImportError)["name"], vars(OSError)["filename"], vars(OSError)["errno"]
_AWAIT_TWICE = (
    "If this awaits the result of a handle call a second time: handles give their value at the first await. "
    "Annotate the parameter as RayServeDeploymentHandle, or set SERVD_LEGACY_HANDLES=1 in env_vars of the "
    "application's runtime_env, for two steps."
)
_AWAIT = "A call through a handle gives a DeploymentResponse: `await` it for its value, or `.result()` where no event loop runs."
_ITERATE = "A call with stream=True gives many values: `async for value in handle.method.remote(...)`."
_HANDLE = "A handle stands for a deployment: call it for a value, `await handle.method.remote(...)`."
_COROUTINE = "An `async def` gives a coroutine: `await` its call for its value."
_LOOP = (
    "Sync handlers, and constructors where all handlers are sync, run on a thread without an event loop: "
    "`async def` runs on the loop, `async def __init__` too."
)
_DEBUGGER = (
    "`breakpoint()` needs a terminal, and a replica has none: run the application in yours, "
    "`servd.run(app, local=True).remote(...).result()` (docs/testing.md)."
)
_PORT = (
    "A port is there once on a host, and code is imported again at each deploy, while older replicas run: open the port in the "
    "constructor of a deployment with one replica and `max_surge_percent=0`, or take any free one (port 0). `ss -ltnp` shows who "
    "has it."
)
_HINTS: tuple[tuple[type[Exception], re.Pattern[str], str], ...] = (
    # "object int can't be used in 'await' expression" until Python 3.13, "'int' object can't be awaited" from 3.14 on
    (TypeError, re.compile(r"can't be (used in 'await' expression|awaited)"), _AWAIT_TWICE),
    (Exception, re.compile(r"\bDeploymentResponseGenerator\b"), _ITERATE),
    (Exception, re.compile(r"\bDeploymentResponse\b"), _AWAIT),
    (
        Exception,
        # no `\w+` at a begin: it would be tried from each letter of a long word on, to its end
        re.compile(r"\wHandle has no JSON form|'\w+Handle' object|=(Deployment|RayServe\w*)Handle\("),
        _HANDLE,
    ),
    (Exception, re.compile(r"\bcoroutine has no JSON form|'coroutine' object"), _COROUTINE),
    (RuntimeError, re.compile(r"^no running event loop|^There is no current event loop in thread"), _LOOP),
)
"""Class of the error, what is in its text, what to do. The first that fits."""


def hint_for(error: BaseException, folder: str) -> str:
    """A sentence that says what to do, "" where nothing is known.

    Args:
        folder: the current directory, as the user knows it.
    """
    # of the type alone: `isinstance` asks the object too
    kind, text = type(error), text_of(error)[:_LONGEST]
    # its names may be no attributes that can be asked for
    if full_name_of(kind) == "bdb.BdbQuit":
        return _DEBUGGER
    if issubclass(kind, ModuleNotFoundError):
        name = _NAME.__get__(error)
        package = str(name).partition(".")[0] if name else "it"
        return f"If {package} is a package: install it where the daemon runs, or name it in `pip` of the runtime_env."
    if issubclass(kind, FileNotFoundError):
        path = _FILENAME.__get__(error)
        if isinstance(path, str) and path and not os.path.isabs(path):
            return (
                f"The path is relative, to {folder}: name the folder that holds the file as working_dir of the application's "
                "runtime_env, or begin the path with that of the module, `Path(__file__).parent`."
            )
        return ""
    if issubclass(kind, OSError) and _ERRNO.__get__(error) == errno.EADDRINUSE:
        return _PORT
    return next((hint for known, pattern, hint in _HINTS if issubclass(kind, known) and pattern.search(text)), "")
