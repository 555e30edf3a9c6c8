"""What a caller can read of a replica that is gone: the request begun last."""

import errno
import os
import random
from pathlib import Path

import pytest

from servd.calls.pickling import dumps
from servd.calls.request_context import NO_REQUEST
from servd.exceptions import TransportError
from servd.wire import began
from servd.wire.began import BeganLog, BeganReader, path_of
from tests.fakes import FakeUser, a_caller, a_server, new_address, routing_for, targets_for


def test_the_request_begun_last_outlives_the_replica(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/r"
    log = BeganLog(address)
    reader, other = BeganReader(address, 7), BeganReader(address, 8)
    place = log.open_place(7)
    assert reader.last_begun() == 0
    log.words[place] = 41
    assert reader.last_begun() == 41
    assert other.last_begun() == 0, "it was never greeted, so nothing of it began"
    log.close_place(place)
    assert reader.last_begun() == 41, "the replica may have given the caller up before the caller knows"
    began.remove_files(address)
    assert reader.last_begun() == 41
    reader.close(is_dead=True)
    other.close()


def test_where_places_ran_out_nothing_is_known(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/r"
    log = BeganLog(address)
    reader = BeganReader(address, 7)
    while log.open_place(9) > 1:
        pass
    log.words[log.open_place(7)] = 5
    assert reader.last_begun() is None
    reader.close()


def test_a_reader_keeps_no_descriptor_and_takes_no_other_file(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/r"
    log = BeganLog(address)
    before = os.listdir("/proc/self/fd")
    reader = BeganReader(address, 7)
    assert reader.last_begun() == 0
    assert os.listdir("/proc/self/fd") == before
    reader.close()
    assert reader.last_begun() is None
    log.close()
    Path(f"{tmp_path}/r.began").write_bytes(b"x" * 100)
    assert BeganReader(address, 7).last_begun() is None


def test_a_file_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert BeganReader(f"ipc://{tmp_path}/nobody", 7).last_begun() is None
    assert BeganReader("tcp://127.0.0.1:1", 7).last_begun() is None
    assert path_of("tcp://127.0.0.1:1") is None


def test_a_place_is_used_again_only_when_none_is_fresh(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/r"
    log = BeganLog(address)
    first = log.open_place(7)
    log.close_place(first)
    assert log.open_place(8) != first
    assert os.path.exists(f"{tmp_path}/r.began")
    log.close()
    assert not os.path.exists(f"{tmp_path}/r.began")


def test_without_room_there_is_an_error_that_names_the_directory_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(TransportError, match=f"32 KiB in the socket directory {tmp_path}: No space left"):
        BeganLog(f"ipc://{tmp_path}/r")
    assert os.listdir(tmp_path) == []


def test_the_room_that_is_mapped_is_there(tmp_path: Path) -> None:
    log = BeganLog(f"ipc://{tmp_path}/r")
    assert os.stat(path_of(f"ipc://{tmp_path}/r") or "").st_blocks * 512 >= len(log.words) * 8


async def test_callers_whose_code_seeds_random_numbers_are_told_apart() -> None:
    """Replicas that seed alike in their constructors must not read of each other's requests what has begun."""

    async def say() -> str:
        return "said"

    address = new_address()
    server = a_server(address, FakeUser(methods={"say": say}))
    server.start()
    callers = [a_caller(), a_caller()]
    for caller in callers:
        random.seed(42)
        caller.apply_routing(routing_for(targets_for(address)))
        await caller.submit_call("app_Echo", "say", dumps(((), {})), NO_REQUEST)
    assert len({peer.key for peer in server._callers()}) == 2
    for caller in callers:
        caller.close()
    server.close()
