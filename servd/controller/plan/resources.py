"""Which devices and how many CPUs a replica gets. Accounting only: nothing is measured here.

`num_gpus` reserves devices of the host, fractions share one. `num_cpus` limits only where the daemon was started with a pool.
"""

import math
from collections.abc import Iterable

from servd.ground.quick_dataclass import dataclass
from servd.ground.settings import Settings

EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica needs: CPUs (no bound unless there is a pool) and GPUs, >= 0; below 1 a share of one device."""

    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a living replica holds: CPUs, the share of each of its devices (1.0 = whole), and these devices."""

    cpus: float = 0.0
    share: float = 0.0
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """What the host has. cpus None = no limit. gpus: number of devices."""

    cpus: float | None = None
    gpus: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "Pool":
        """The host's pool under these settings."""
        return cls(settings.num_cpus, int(settings.num_gpus or 0))


def place(need: Need, held: Iterable[Held], pool: Pool) -> Held | None:
    """What the replica gets, or None while it does not fit.

    A share goes to the fullest device that still has room, so whole devices stay whole; more than one GPU means that many whole
    free devices, rounded up.
    """
    taken = list(held)
    if pool.cpus is not None and need.cpus > pool.cpus - sum(h.cpus for h in taken) + EPSILON:
        return None
    if need.gpus <= 0:
        return Held(need.cpus)
    load = device_load(taken, pool)
    if need.gpus < 1:
        fitting = [device for device, used in enumerate(load) if used + need.gpus <= 1 + EPSILON]
        best = max(fitting, key=lambda device: (load[device], -device), default=None)
        return None if best is None else Held(need.cpus, need.gpus, (best,))
    count = math.ceil(need.gpus - EPSILON)
    free = [device for device, used in enumerate(load) if used <= EPSILON]
    return Held(need.cpus, 1.0, tuple(free[:count])) if len(free) >= count else None


def device_load(held: Iterable[Held], pool: Pool) -> list[float]:
    """Share in use of every device, shape (pool.gpus,)."""
    load = [0.0] * pool.gpus
    for item in held:
        for device in item.devices:
            if device < pool.gpus:
                load[device] += item.share
    return load


def shortage(need: Need, held: Iterable[Held], pool: Pool) -> str:
    """For people: what is needed and what is free."""
    taken = list(held)
    parts = []
    if pool.cpus is not None and need.cpus:
        free = max(pool.cpus - sum(h.cpus for h in taken), 0.0)
        parts.append(f"num_cpus {need.cpus:g} ({free:g} of {pool.cpus:g} free)")
    if need.gpus:
        free = sum(1 - used for used in device_load(taken, pool))
        parts.append(f"num_gpus {need.gpus:g} ({free:g} of {pool.gpus} free)")
    return "a replica needs " + " and ".join(parts)
