"""What libraries open around a fork stays theirs in a replica, with real processes."""

import socket
from collections.abc import AsyncIterator

import pytest

from tests.fakes import wait_until
from tests.rooms.replica_room import Room, a_room

pytestmark = pytest.mark.slow

APP = """
import os, socket, threading, time
from servd import deployment

made_in_child, connections = [], []
os.register_at_fork(after_in_child=lambda: made_in_child.append(open("/dev/zero", "rb", buffering=0)))

counter, copies = os.eventfd(0, os.EFD_NONBLOCK), []
def begin_anew():
    global counter
    os.close(counter)
    # under the same number
    counter = os.eventfd(0, os.EFD_NONBLOCK)
    copies.append(os.dup(counter))
os.register_at_fork(after_in_child=begin_anew)

def send():
    while not os.path.exists("port"):
        time.sleep(0.01)
    with open("port") as file:
        connections.append(socket.create_connection(("127.0.0.1", int(file.read()))))
    open("connected", "w").close()
    threading.Event().wait()

# of those that start anew in a child
threading.Thread(target=send, name="sentry-sdk.BackgroundWorker", daemon=True).start()

@deployment
class Model:
    async def look(self):
        os.eventfd_write(counter, 7)
        return connections[0].recv(1), made_in_child[-1].read(2), os.eventfd_read(copies[-1])
    async def close(self):
        connections.pop().close()
        made_in_child.pop().close()
    async def answer(self):
        return 1

app = Model.bind()
"""


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with a_room() as made:
        yield made


async def test_what_libraries_open_in_the_fork_server_or_as_a_child_begins_is_theirs(room: Room) -> None:
    room.write(late=APP)
    hello = await room.open_fork_server(room.order("late:app"))
    assert hello.result is not None
    assert (hello.result.error, hello.result.fork_unsafe) == ("", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (room.app_dir / "port").write_text(str(server.getsockname()[1]))
        await wait_until(lambda: (room.app_dir / "connected").exists())
        for suffix in "ab":
            start = room.start_of("Model", suffix)
            await room.running(start)
            room.route(start)
            # at its end there, and whole in the fork server
            assert await room.call("Model", "look") == (b"", b"\0\0", 7)
            await room.call("Model", "close")
            assert await room.call("Model", "answer") == 1
