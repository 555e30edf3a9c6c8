"""What the kernel knows of a client: it has reset, it has left, its host has vanished."""

import fcntl
import socket
import struct
import termios

from servd.ground.keep_alive import KeepAlive

_TCP_CLOSE = 7
_TCP_CLOSE_WAIT = 8
"""States of a connection (linux/tcp_states.h), the first byte of `TCP_INFO`: after a reset, after the other side's end."""

_INFO_BYTES = 60
_LONG_INFO_BYTES = 136
_LONGEST_INFO_BYTES = 216
_RETRANSMITS_AT = 2
_PROBES_AT = 3
_LAST_DATA_AT = 52
_LAST_ACK_AT = 56
_RECEIVED_AT = 128
_UNSENT_AT = 144
_SENT_AT = 200
"""Where `struct tcp_info` (linux/tcp.h) has what was sent again and asked without an answer, milliseconds since data and since an
answer came, how many bytes did, how many wait to be sent, how many were, and behind that how many of these again."""


def is_reset(sock: socket.socket | None) -> bool:
    """Whether the other side has reset this connection; False where nobody can tell."""
    return _state(sock) == _TCP_CLOSE


def is_left(sock: socket.socket | None) -> bool:
    """Whether the other side has reset this connection, or will send nothing more; what it sent may still be unread."""
    return _state(sock) in (_TCP_CLOSE, _TCP_CLOSE_WAIT)


def unread_bytes(sock: socket.socket | None) -> int:
    """What the other side has sent and nobody has read. 0 where nobody can tell."""
    return _bytes_in(sock, termios.FIONREAD)


def untaken_bytes(sock: socket.socket | None) -> int:
    """What was written to this connection and the other side's host has not acknowledged. 0 where nobody can tell."""
    return _bytes_in(sock, termios.TIOCOUTQ)


def _bytes_in(sock: socket.socket | None, question: int) -> int:
    if sock is None:
        return 0
    try:
        return struct.unpack("=i", fcntl.ioctl(sock.fileno(), question, b"\0\0\0\0"))[0]  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return 0


def received_bytes(sock: socket.socket) -> int:
    """What the other side has sent so far, read or not; its end counts as one. 0 where nobody can tell."""
    info = _info(sock, _LONG_INFO_BYTES)
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) if len(info) == _LONG_INFO_BYTES else 0


def written_bytes(sock: socket.socket) -> int:
    """What has been written to this connection so far, by whoever has it open, sent or not. 0 where nobody can tell."""
    info = _info(sock, _LONGEST_INFO_BYTES)
    if len(info) < _LONGEST_INFO_BYTES:
        return 0
    sent, again = struct.unpack_from("=QQ", info, _SENT_AT)
    return int(struct.unpack_from("=I", info, _UNSENT_AT)[0] + sent - again)


def is_slow(sock: socket.socket, limit_s: float) -> bool:
    """Whether all that the other side has sent is read, and it has sent nothing for longer than that."""
    info = _info(sock, _INFO_BYTES)
    if len(info) < _INFO_BYTES or unread_bytes(sock):
        return False
    return bool(struct.unpack_from("=I", info, _LAST_DATA_AT)[0] > 1000 * limit_s)


class Silence:
    """How long a client's host leaves everything without an answer.

    While something is on its way the kernel sends no keep-alive probes, and gives up after a quarter of an hour only. A host
    that is there answers what is sent again and what is asked, also when its client does not read.
    """

    __slots__ = ("_keep_alive", "_looks")

    def __init__(self, keep_alive: KeepAlive) -> None:
        self._keep_alive = keep_alive
        self._looks = 0

    def look(self, sock: socket.socket | None) -> bool:
        """Whether the host is gone. To be called once a second."""
        keep_alive = self._keep_alive
        if not keep_alive.after_s:
            return False
        self._looks = self._looks + 1 if is_silent(_info(sock, _INFO_BYTES), keep_alive.last_probe_s) else 0
        # what is without an answer may have been asked just now: it has as long as the kernel gives the last probe
        return self._looks > keep_alive.every_s


def is_silent(info: bytes, silence_s: float) -> bool:
    """Whether something waits for an answer, and none of any kind has come for so long.

    Args:
        info: the first 60 bytes of `TCP_INFO`; less = nobody knows.
    """
    if len(info) < _INFO_BYTES or not (info[_RETRANSMITS_AT] or info[_PROBES_AT]):
        return False
    (last_ack_ms,) = struct.unpack_from("=I", info, _LAST_ACK_AT)
    return bool(last_ack_ms >= 1000 * silence_s)


def _state(sock: socket.socket | None) -> int:
    if sock is None or sock.family == socket.AF_UNIX:
        return 0
    info = _info(sock, 1)
    return info[0] if info else _TCP_CLOSE


def _info(sock: socket.socket | None, size: int) -> bytes:
    try:
        return b"" if sock is None else sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    except (OSError, ValueError):
        # closed (uvloop's socket has descriptor -1 then), or no TCP
        return b""
