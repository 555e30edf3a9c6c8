"""The host's GPUs: how many there are, by NVML through ctypes, and what they are called."""

import ctypes
import logging
import os
from collections.abc import Mapping

VARIABLE = "CUDA_VISIBLE_DEVICES"
_LIBRARY = "libnvidia-ml.so.1"

logger = logging.getLogger(__name__)


def device_names(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of the devices that this daemon may use, as `CUDA_VISIBLE_DEVICES` spells them, in the order of their indices.

    Where the daemon itself was started with that variable, these; else "0", "1", ... for what NVML finds; none without NVML.
    """
    if VARIABLE in environment:
        names = (name.strip() for name in environment[VARIABLE].split(","))
        return tuple(name for name in names if name and name != "-1")
    return tuple(map(str, range(_count())))


def with_device_names(variables: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """A replica's variables with the names of its devices in place of their indices."""
    if VARIABLE not in variables:
        return dict(variables)
    indices = [int(index) for index in variables[VARIABLE].split(",")]
    # --num-gpus may claim more than was found
    found = [names[index] if index < len(names) else str(index) for index in indices]
    return {**variables, VARIABLE: ",".join(found)}


def _count() -> int:
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        # no driver, no devices
        return 0
    if error := nvml.nvmlInit_v2():
        logger.warning("nvml_unusable error=%d", error)
        return 0
    number = ctypes.c_uint(0)
    error = nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
    nvml.nvmlShutdown()
    if error:
        logger.warning("nvml_unusable error=%d", error)
        return 0
    return number.value
