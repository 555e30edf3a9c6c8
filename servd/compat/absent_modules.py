"""Modules of Ray that servd does not have: what the error that importing one raises says to use instead."""

import sys
from collections.abc import Sequence
from opcode import opmap
from typing import NoReturn

_TASKS = "make a deployment and call it through a handle, from tasks of `asyncio` or threads"
_QUEUE = "let the consumer of your queue call a handle"
_ENGINE = (
    "run the engine in a deployment of your own, whose handlers stream what it generates (docs/howto/streaming.md)"
)
_OUTSIDE = "it is no part of Ray Serve; where that belongs to the application, it needs Ray itself"

INSTEAD = {
    "ray.serve.llm": _ENGINE,
    "ray.llm": _ENGINE,
    "ray.serve.gradio_integrations": (
        "mount the page in a FastAPI application with `gradio.mount_gradio_app`, and give that to `servd.ingress`"
    ),
    "ray.serve.air_integrations": "load the model in the constructor of a deployment",
    "ray.serve.task_processor": _QUEUE,
    "ray.serve.taskiq_task_processor": _QUEUE,
    "ray.serve.async_inference_autoscaling_policy": "ask the broker in an autoscaling policy of your own (docs/api.md)",
    "ray.actor": _TASKS,
    "ray.remote_function": _TASKS,
    "ray.util.ActorPool": _TASKS,
    "ray.util.actor_pool": _TASKS,
    "ray.util.multiprocessing": _TASKS,
    "ray.util.joblib": _TASKS,
    "ray.util.queue": "give the deployment a queue of its own, and call its methods through a handle",
    "ray.util.state": "`servd.status()` and `servd status` say what runs",
    "ray.util.placement_group": "there is one host; `num_gpus` reserves its devices",
    "ray.util.scheduling_strategies": "there is one host; `num_gpus` reserves its devices",
    "ray.job_submission": "`servd deploy`, or the admin API, changes what runs",
    "ray.dashboard": "`servd deploy`, or the admin API, changes what runs",
    **dict.fromkeys(
        ("ray.air", "ray.autoscaler", "ray.data", "ray.rllib", "ray.train", "ray.tune", "ray.workflow"), _OUTSIDE
    ),
}
"""Name of a module, a package or what is in one -> what to use instead."""
_IMPORT_FROM = opmap["IMPORT_FROM"]


def why_absent(name: str, there: Sequence[str]) -> str:
    """What to say of a module that is not here. there: those that are."""
    return f"servd has no {name}: " + (instead_of(name) or f"its Ray Serve API covers {', '.join(there)}")


def instead_of(name: str) -> str:
    """What to use instead of a module, of one below it, or of what is in it; "" where nothing is known."""
    parts = name.split(".")
    tries = (".".join(parts[:size]) for size in range(len(parts), 1, -1))
    return next((INSTEAD[found] for found in tries if found in INSTEAD), "")


def refuse(words: str) -> NoReturn:
    """Say, in a module's `__getattr__`, that it has no such name.

    Raises:
        ImportError: in the statement `from ... import`, which puts words of its own in the place of an AttributeError's.
        AttributeError: elsewhere, since `hasattr`, `getattr` with a default and pickle go by that one; no class can be both.
    """
    asks = sys._getframe(2)
    if asks.f_code.co_code[asks.f_lasti] == _IMPORT_FROM:
        raise ImportError(words)
    raise AttributeError(words)
