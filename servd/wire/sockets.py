"""ZeroMQ sockets of a process: how they are made, and bodies that travel as frames of their own."""

import os
from typing import Any

import zmq

from servd.exceptions import ProtocolError, TransportError
from servd.ground.host_limits import told

MAX_SOCKETS = 16384
"""ZeroMQ takes 12 bytes of memory at once for each that there may be."""
ZERO_COPY_BYTES = 1024 * 1024
"""From this size on a frame that cannot change is sent without a copy; below, copying is as fast."""

EVENTS = zmq.EVENTS
POLLIN = int(zmq.POLLIN)
NOBLOCK = int(zmq.NOBLOCK)
SNDMORE = int(zmq.SNDMORE)
_HEARTBEAT_MS = 4_000
"""To send and to answer them is most of what idle replicas cost."""
_HEARTBEAT_TIMEOUT_MS = 6_000
_HEARTBEAT_TTL_MS = 10_000
"""After so long without a beat the other end takes this one for frozen: one may be late by more than the time between two."""

_max_sockets = MAX_SOCKETS
_context: zmq.Context[zmq.Socket[bytes]] | None = None
_of_parents: list[Any] = []


def _begin_child() -> None:
    """In a forked child ZeroMQ's threads are not there; what they worked for is kept, for it cannot be ended without them."""
    global _context
    if _context is not None:
        _of_parents.append(_context)
        _context = None


os.register_at_fork(after_in_child=_begin_child)


def _process_context() -> "zmq.Context[zmq.Socket[bytes]]":
    global _context
    if _context is None:
        _context = zmq.Context(1)
        _context.set(zmq.MAX_SOCKETS, _max_sockets)
        _context.set(zmq.BLOCKY, 0)
    return _context


def expect_at_most(count: int) -> None:
    """This process will not open more. Before the first."""
    global _max_sockets
    _max_sockets = count


def finish() -> None:
    """End ZeroMQ in this process, which is about to end too: waits until closed links have sent what they may."""
    global _context
    if _context is not None:
        _context.destroy(linger=0)
        _context = None


def open_socket(kind: int) -> "zmq.Socket[bytes]":
    try:
        socket = _process_context().socket(kind)
    except zmq.ZMQError as error:
        raise not_opened(error) from error
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    return socket


def open_watched(kind: int, events: int) -> "tuple[zmq.Socket[bytes], zmq.Socket[bytes]]":
    """A socket, and one that tells of these events of it."""
    socket = open_socket(kind)
    try:
        return socket, socket.get_monitor_socket(events)
    except zmq.ZMQError as error:
        socket.close(0)
        raise not_opened(error) from error


def not_opened(error: zmq.ZMQError) -> TransportError:
    """What is raised for a socket that cannot be opened, or not watched."""
    return TransportError(f"cannot open a socket: {told(error)}")


def beat(socket: "zmq.Socket[bytes]") -> None:
    """Tell a frozen peer from a busy one: ZeroMQ's own thread answers while Python is stuck.

    The peer goes by what comes, so that the beats of one end do for both.
    """
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS)


def fd_of(socket: "zmq.Socket[bytes]") -> int:
    return int(socket.getsockopt(zmq.FD))


def receive_frames(socket: "zmq.Socket[bytes]", count: int) -> list[Any]:
    frames: list[Any] = []
    for _ in range(count):
        # what follows the last frame is the next message, maybe somebody else's
        if not socket.getsockopt(zmq.RCVMORE):
            raise ProtocolError(f"{count} frames told, {len(frames)} came")
        frame = socket.recv(NOBLOCK, copy=False)
        # as it came, without a copy, and no more writable than a copy would be
        frames.append(frame.buffer.toreadonly() if len(frame) >= ZERO_COPY_BYTES else frame.bytes)
    return frames


def send_frames(socket: "zmq.Socket[bytes]", frames: list[Any]) -> None:
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        # ZeroMQ's thread sends it later, so it must not change until then
        is_fixed = type(frame) is bytes or (type(frame) is memoryview and frame.readonly)
        copy = not is_fixed or len(frame) < ZERO_COPY_BYTES
        socket.send(frame, NOBLOCK | (SNDMORE if index < last else 0), copy=copy)
