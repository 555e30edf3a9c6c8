"""The names of GPUs, and what a replica is told of its own."""

from servd.controller.devices import device_names, with_device_names


def test_the_daemons_own_variable_decides_which_devices_there_are() -> None:
    assert device_names({"CUDA_VISIBLE_DEVICES": "2, GPU-3f,7"}) == ("2", "GPU-3f", "7")
    assert device_names({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert device_names({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


def test_without_it_devices_are_counted() -> None:
    names = device_names({})
    assert names == tuple(str(index) for index in range(len(names)))


def test_a_replica_is_told_the_names_of_its_devices() -> None:
    assert with_device_names({"CUDA_VISIBLE_DEVICES": "1,0"}, ("2", "GPU-3f")) == {"CUDA_VISIBLE_DEVICES": "GPU-3f,2"}
    assert with_device_names({"CUDA_VISIBLE_DEVICES": "3"}, ("0",)) == {"CUDA_VISIBLE_DEVICES": "3"}
    assert with_device_names({"A": "b"}, ("0",)) == {"A": "b"}
