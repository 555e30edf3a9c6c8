"""Make the user's instance: in its replica, or once in the template from which all replicas are forked."""

import asyncio
import gc
import inspect
import sys
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from servd.app.deployment import ASGI_ATTRIBUTE, Deployment
from servd.ground.quick_dataclass import dataclass
from servd.replica.methods import ON_REPLICA_START, are_handlers_sync
from servd.replica.native.objects import living

HOOK = f"`{ON_REPLICA_START}(self)`"


def has_hooks_on_thread(deployment: Deployment) -> bool:
    """Whether sync hooks run on a thread: all handlers are sync, and so run on one too."""
    target = deployment.func_or_class
    return not deployment.is_function and not hasattr(target, ASGI_ATTRIBUTE) and are_handlers_sync(target)


async def new_instance(
    deployment: Deployment,
    on_thread: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    on_made: Callable[[Any], None] = lambda _: None,
    preloaded: Any = None,
) -> Any:
    """A fresh instance of a deployment's class.

    Args:
        on_thread: runs a sync constructor elsewhere; None: here, on the loop's thread.
        on_made: told an instance whose async constructor is about to run.
        preloaded: the instance, where the template has made it on the thread that this is a copy of. What its constructor has
            set for its thread holds where the constructor would have run.

    Raises:
        BaseException: whatever the constructor raises.
    """
    if preloaded is not None:
        if on_thread is not None and (modes := _thread_modes()) is not None:
            await on_thread(modes)
        return preloaded
    target: Any = deployment.func_or_class
    args, kwargs = deployment.init_args, deployment.init_kwargs
    if inspect.iscoroutinefunction(target.__init__):
        instance = target.__new__(target, *args, **kwargs)
        on_made(instance)
        await instance.__init__(*args, **kwargs)
        return instance
    if on_thread is not None:
        return await on_thread(lambda: target(*args, **kwargs))
    return target(*args, **kwargs)


def _thread_modes() -> Callable[[], Any] | None:
    """Sets for another thread what PyTorch keeps for each and was changed for this one; None: nothing was."""
    torch = sys.modules.get("torch")
    # another module may bear that name
    is_enabled, enable = getattr(torch, "is_grad_enabled", None), getattr(torch, "set_grad_enabled", None)
    if not callable(is_enabled) or not callable(enable) or is_enabled():
        return None
    return partial(enable, False)


@dataclass(frozen=True, slots=True)
class Preloaded:
    """An instance that was made before there is a replica. unfit_reason: which loop or task of its constructor's forbids to fork
    replicas with it, "" for none; threads and devices are for others to judge."""

    value: Any
    unfit_reason: str = ""


def new_preloaded(deployment: Deployment) -> Preloaded:
    """An instance to fork replicas with.

    The constructor sees a running loop exactly where it would in a replica; that loop ends with it.

    Raises:
        BaseException: whatever the constructor raises.
    """
    target: Any = deployment.func_or_class
    before = {id(loop) for loop in _open_loops()}
    if has_hooks_on_thread(deployment) and not inspect.iscoroutinefunction(target.__init__):
        made = Preloaded(target(*deployment.init_args, **deployment.init_kwargs))
    else:
        made = _made_in_a_loop(deployment)
    if not made.unfit_reason and any(id(loop) not in before for loop in _open_loops()):
        return Preloaded(made.value, f"the constructor left an event loop open; open it in {HOOK}")
    return made


def _made_in_a_loop(deployment: Deployment) -> Preloaded:
    loop = asyncio.new_event_loop()
    value = loop.run_until_complete(new_instance(deployment))
    if tasks := asyncio.all_tasks(loop):
        # the loop stays as it is: nothing is forked with it
        return Preloaded(value, f"the constructor left {len(tasks)} task(s) running; start them in {HOOK}")
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    if queues := sys.modules.get("servd.app.batch_queue"):
        # of batched methods that the constructor has called
        queues.forget_loop(loop)
    kept = weakref.ref(loop)
    del loop
    gc.collect()
    if kept() is not None:
        return Preloaded(value, f"the constructor's event loop is kept by what it made; make that in {HOOK}")
    return Preloaded(value)


def _open_loops() -> list[asyncio.AbstractEventLoop]:
    return [loop for loop in living(asyncio.AbstractEventLoop) if not loop.is_closed()]
