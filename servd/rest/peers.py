"""Who is at the other end of an accepted connection: a Unix socket's client, or the owner of a TCP socket."""

import os
import pwd
import socket
import struct
from ipaddress import IPv6Address, ip_address

from servd.ground.quick_dataclass import dataclass
from servd.wire.credentials import peer_credentials

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_MAPPED = b"\0" * 10 + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Peer:
    """The client of one connection. is_unix: it came through the Unix socket, whose file mode let it in.

    uid: owner of the client's TCP socket, or user of the Unix socket's client; None if no living socket of this host was found.
    """

    is_unix: bool
    uid: int | None = None

    @property
    def name(self) -> str:
        """The user for people: name and uid."""
        if self.uid is None:
            return "an unknown user"
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"uid {self.uid}"


def peer_of(connection: socket.socket) -> Peer:
    """The peer, looked up now: call it when the connection is accepted, because a closed client shows as uid 0."""
    if connection.family == socket.AF_UNIX:
        return Peer(is_unix=True, uid=peer_credentials(connection)[1])
    try:
        client, local = connection.getpeername(), connection.getsockname()
    except OSError:
        return Peer(is_unix=False)
    return Peer(is_unix=False, uid=tcp_owner((client[0], client[1]), (local[0], local[1])))


def tcp_owner(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """uid that created the socket at `client` that is connected to `server`; None without a living one.

    A row without an inode belongs to a socket that its process has closed; the kernel shows those as uid 0.
    """
    source, destination = _plain(client[0]), _plain(server[0])
    for mapped in (False, True):
        row = _ask_kernel(source, client[1], destination, server[1], mapped=mapped)
        if row is None:
            row = _read_table(source, client[1], destination, server[1], mapped=mapped)
        if row is not None:
            uid, inode = row
            return uid if inode != 0 else None
    return None


def _plain(host: str) -> bytes:
    """4 or 16 bytes; an IPv4 address in IPv6 dress becomes 4."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.packed
    return address.packed


def _dressed(address: bytes, *, mapped: bool) -> bytes:
    return _MAPPED + address if mapped and len(address) == 4 else address


def _ask_kernel(
    source: bytes, source_port: int, destination: bytes, destination_port: int, *, mapped: bool
) -> tuple[int, int] | None:
    """(uid, inode) from sock_diag, which needs 0.2 ms whatever the number of sockets; None if it does not know."""
    source, destination = _dressed(source, mapped=mapped), _dressed(destination, mapped=mapped)
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    ident = struct.pack("!HH16s16s", source_port, destination_port, source, destination)
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + ident
    body += struct.pack("=I", 0) + _NO_COOKIE
    head = struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, 1, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as link:
            link.settimeout(0.5)
            link.sendto(head + body, (0, 0))
            answer = link.recv(4096)
    except OSError:
        return None
    if len(answer) < 16 + 72 or struct.unpack_from("=H", answer, 4)[0] != _SOCK_DIAG_BY_FAMILY:
        return None
    # the kernel falls back to a listener on the same port: only an exact match is the client
    if answer[20 : 20 + len(ident)] != ident:
        return None
    uid, inode = struct.unpack_from("=II", answer, 16 + 64)
    return uid, inode


def _read_table(
    source: bytes, source_port: int, destination: bytes, destination_port: int, *, mapped: bool
) -> tuple[int, int] | None:
    """(uid, inode) from /proc/net/tcp or tcp6."""
    source, destination = _dressed(source, mapped=mapped), _dressed(destination, mapped=mapped)
    wanted = (_table_form(source, source_port), _table_form(destination, destination_port))
    try:
        with open("/proc/net/tcp" if len(source) == 4 else "/proc/net/tcp6") as table:
            next(table)
            for line in table:
                fields = line.split()
                if (fields[1], fields[2]) == wanted:
                    return int(fields[7]), int(fields[9])
    except (OSError, StopIteration, IndexError, ValueError):
        return None
    return None


def _table_form(address: bytes, port: int) -> str:
    words = struct.unpack(f"={len(address) // 4}I", address)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def own_uids() -> frozenset[int]:
    """The users who are let in over loopback: the daemon's own, and root."""
    return frozenset({0, os.getuid()})
