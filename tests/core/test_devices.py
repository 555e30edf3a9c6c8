"""The names of GPUs, and what a replica is told of its own."""

import ctypes
from typing import Any

import pytest

from servd.controller.devices import device_names, with_device_names


class FakeNvml:
    """NVIDIA's library, as far as it is asked; an error is a number other than 0."""

    def __init__(self, count: int, *, init_error: int = 0, count_error: int = 0) -> None:
        self.count, self.init_error, self.count_error = count, init_error, count_error
        self.is_open = False

    def nvmlInit_v2(self) -> int:
        self.is_open = not self.init_error
        return self.init_error

    def nvmlDeviceGetCount_v2(self, place: Any) -> int:
        assert self.is_open
        place._obj.value = self.count
        return self.count_error

    def nvmlShutdown(self) -> int:
        self.is_open = False
        return 0


def test_the_daemons_own_variable_decides_which_devices_there_are() -> None:
    assert device_names({"CUDA_VISIBLE_DEVICES": "2, GPU-3f,7"}) == ("2", "GPU-3f", "7")
    assert device_names({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert device_names({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (FakeNvml(3), ("0", "1", "2")),
        (FakeNvml(0), ()),
        (FakeNvml(3, init_error=9), ()),  # the driver is not loaded
        (FakeNvml(3, count_error=999), ()),
    ],
)
def test_without_it_nvml_counts(monkeypatch: pytest.MonkeyPatch, library: FakeNvml, expected: tuple[str, ...]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert device_names({}) == expected
    assert not library.is_open


def test_without_a_driver_there_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert device_names({}) == ()


def test_a_replica_is_told_the_names_of_its_devices() -> None:
    assert with_device_names({"CUDA_VISIBLE_DEVICES": "1,0"}, ("2", "GPU-3f")) == {"CUDA_VISIBLE_DEVICES": "GPU-3f,2"}
    assert with_device_names({"CUDA_VISIBLE_DEVICES": "3"}, ("0",)) == {"CUDA_VISIBLE_DEVICES": "3"}
    assert with_device_names({"A": "b"}, ("0",)) == {"A": "b"}
