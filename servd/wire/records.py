"""What callers and replicas say to each other on the data path: kinds of records, and the envelope of one loop turn.

An envelope is a msgpack list, the number of frames and then the records, followed by the frames. Where there is a line beside the
link (`wire/packet_line.py`), the list begins with both numbers, of the frames and the envelope's own. A record is a flat tuple
that starts with its kind and, but for a few, the id of its call (unique per caller). Bodies of `FRAME_BYTES` and more
travel as frames of their own: the record holds their index then.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from servd.exceptions import ProtocolError
from servd.wire.write_right import Given

FRAME_BYTES = 64 * 1024
"""Bodies from this size on are frames of their own."""

CREDIT_BYTES = 1024 * 1024
"""What a stream's sender may have outstanding."""
MEDIUM_BYTES = 64 * 1024
NARROW_BYTES = 4 * 1024
"""What the sender of a medium and of a narrow answer may have outstanding before it is granted more."""

LENT_EARLY_BYTES = 64 * 1024
"""From this size on a replica writes an answer itself to a connection that has come with the request."""

EVENT_COST_BYTES = 512
"""What a message of a WebSocket counts beside its bytes: many small ones cost more memory than they have bytes."""
MESSAGE_COST_BYTES = 64
"""What a message of a gRPC stream costs beside its bytes."""

RESTARTING = 1012
"""What WebSockets are closed with when their proxy or their replica is to end."""

# both ways
BODY = 2  # id, data, more; of a call of gRPC one message, and the end (without data) is another
CREDIT = (
    3  # id, bytes: the reader took so many; a replica's first one for a WebSocket also: True, it puts messages together
)
EVENT = 7  # id, ASGI message of a WebSocket, cost in bytes; with "more" in it the begin of a message, to such a replica

# caller -> replica
HTTP = 0  # id, flags, method, path, query, pairs of headers, body, request id, route, origin, extra
CALL = 1  # id, flags, method, parts, (request id, route, app, model id, seconds left, depth, ancestors)
GRPC = 17  # id, flags, method, message, request id, (seconds left, model id, client, pairs of metadata, authentication)
SOCKET = 22  # as HTTP, and (seconds between pings, to a sign of life): a WebSocket, whose connection was lent before (LENT_BODY)
CANCEL = 4  # id
DECLINE = 5  # the offered slot is not wanted
HELLO = 14  # the caller's key, its edition, whether it asks for ROUTES: first record on a connection
KEEP = 20  # id: the replica may not write to the client itself; the body goes as records
WANT = 6  # number of requests that wait at the caller: its ticket

# replica -> caller
RESPONSE = (
    0  # id, ongoing, status, header block, body: a whole HTTP response; a negative status: then close the connection
)
# of a call of gRPC: id, ongoing, status code, answer block, message (b"" where it streams)
REPLY = 1  # id, ongoing, succeeded, parts: end of a handle call
HEAD = 8  # id, status as above, header block: a response that streams
ACCEPTED = 9  # ids
REJECTED = 10  # id, ongoing, is_leaving
OFFER = 11  # ongoing: one slot is held for the caller
ITEM = 12  # id, parts, cost in bytes: one item of a streaming handle call
END = 13  # id, ongoing, error text or None: end of a stream
# requests that run at a time: answer to HELLO, and when it changes; behind it whether bodies may be lent, and True where
# WebSockets may be handed over
LIMIT = 15
ASK = 18  # id: after HEAD; may the replica write the body to the client itself? Answered by a loan (`wire/lending.py`) or KEEP
BACK = 19  # id, bytes: the replica writes no more, and has written so many of the body; of a WebSocket: it is over
TAKEN = 21  # id, bytes: the replica reads no more of a body that was lent with the request, and has taken so many of it
RETURNED = 23  # id, ongoing: the connection of a WebSocket did not arrive, and nothing has begun
LINE = 24  # 0: small envelopes may go by a line of their own (`wire/packet_line.py`)
INVITED = 26  # 0: clients' connections may come with requests, by the line (`wire/write_right.py`)
WROTE = 27  # id, status, bytes, bytes left or None: the replica has written head and so much of the body to the client
ROUTES = 25  # 0, described routes of the ASGI application (`calls/routes/patterns.py`): to who asked for them
REFUSED = 16  # reason: answer to the HELLO of another protocol, and the last word. These two never change their form

_durations: list[bytes] = []


def duration(ms: float) -> bytes:
    """A duration as `Server-Timing` has it: milliseconds, cut to two decimals."""
    if not _durations:
        # where timings are asked for, each response has three
        _durations.extend(b"%.2f" % (hundredths / 100) for hundredths in range(10_000))
    hundredths = int(ms * 100)
    return _durations[hundredths] if hundredths < 10_000 else b"%.2f" % ms


REPLICA_TIMING = b"server-timing: replica;dur="
"""Begin of the header line in which a replica says how long it took, in milliseconds, where that is asked for."""

# flags of HTTP, CALL and GRPC; a receiver overlooks those that it does not know
STREAMED_BODY = 1
CLAIM = 2  # takes the offered slot
WEBSOCKET = 4
STREAM = 8  # the answer of a handle call comes item by item
BEYOND = 16  # a call that runs whatever else does
LENDS = 32  # the client's connection can be lent to the replica
# the caller has little room: an answer above these sizes goes piece by piece, none beyond what was granted
NARROW = 64
MEDIUM = 128
SMALLER = NARROW | MEDIUM
FIRST_CREDIT = {0: CREDIT_BYTES, MEDIUM: MEDIUM_BYTES, NARROW: NARROW_BYTES}
"""What an answer may have outstanding at first, by these flags."""
# with STREAMED_BODY: the record has the body's beginning, and the client's connection is lent to read the rest
LENT_BODY = 256
LENT = 1024
"""The client's connection comes with the envelope (`write_right.py`)."""
TRACED = 512
"""Part of a trace: headers and metadata say of which, the last part of a handle call (`trace_context.packed`)."""

_unpackb = msgpack.unpackb


def unpack(blob: bytes) -> list[Any]:
    """The envelope's content: number of frames, or that and the envelope's own as a tuple, then the records as tuples.

    Raises:
        ProtocolError: no envelope.
    """
    try:
        content: list[Any] = _unpackb(blob, use_list=False, strict_map_key=False)
        if type(content[0]) is int or type(content[0]) is tuple:
            return content
    except Exception as error:
        raise ProtocolError(f"cannot decode envelope: {error!r}") from error
    raise ProtocolError("an envelope starts with its number of frames")


class Outbox:
    """Records for one peer, collected during one turn of the loop.

    is_numbered: envelopes carry their number, as there is another way to the peer. sealed: how many there were so far.
    given: what goes with the next one; its sender takes it.
    """

    __slots__ = ("_pack", "frames", "given", "is_numbered", "records", "sealed")

    def __init__(self) -> None:
        self.is_numbered = False
        self.sealed = 0
        self.records: list[Any] = [0]
        self.frames: list[Any] = []
        self.given: Given | None = None
        self._pack = msgpack.Packer(autoreset=True).pack

    def attach(self, body: Any) -> Any:
        """What stands for `body` in a record: itself, or the index of its frame."""
        if type(body) is not memoryview and len(body) < FRAME_BYTES:
            return body
        if type(body) is memoryview and body.nbytes < FRAME_BYTES:
            return bytes(body)
        self.frames.append(body)
        return len(self.frames) - 1

    def give(self, call_id: int, connection: int, right: int) -> bool:
        """Whether copies of both descriptors go with the envelope; not where there is no room for them."""
        if self.given is None:
            self.given = Given()
        return self.given.add_copies(call_id, connection, right)

    def attach_all(self, parts: Iterable[Any]) -> list[Any]:
        """As `attach`, for the parts of a pickled value."""
        return [part if type(part) is bytes and len(part) < FRAME_BYTES else self.attach(part) for part in parts]

    def seal(self) -> tuple[bytes, list[Any]]:
        """Envelope and frames of everything collected; empties the box."""
        records, frames = self.records, self.frames
        if self.given is not None:
            records[0] = (len(frames), self.sealed, self.given.call_ids)
        else:
            records[0] = (len(frames), self.sealed) if self.is_numbered else len(frames)
        self.sealed += 1
        try:
            blob: bytes = self._pack(records)
        except UnicodeEncodeError:
            blob = _packed(records)
        finally:
            self.records = [0]
            if frames:
                self.frames = []
        return blob, frames


def body_of(value: Any, frames: list[Any]) -> Any:
    """The body behind a record's value: bytes, or a view of a large frame that nobody can write to.

    Raises:
        ProtocolError: there is no such frame.
    """
    if type(value) is int:
        try:
            return frames[value]
        except IndexError:
            raise ProtocolError(f"no frame {value}") from None
    return value


def bodies_of(values: Iterable[Any], frames: list[Any]) -> list[Any]:
    """The parts behind a record's values."""
    return [value if type(value) is bytes else body_of(value, frames) for value in values]


def message_of(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ASGI message of a WebSocket's client whose parts these are; a farewell takes the place of an unfinished one."""
    last = parts[-1]
    if last["type"] != "websocket.receive":
        return last
    name = "bytes" if last.get("text") is None else "text"
    return {"type": last["type"], name: (b"" if name == "bytes" else "").join(part[name] for part in parts)}


def origin(
    client: tuple[str, int] | None, server: tuple[str, int] | None, scheme: str, version: str, root_path: str
) -> bytes:
    """What all requests of a connection have in common, as bytes: receivers decode each value once."""
    return msgpack.packb((client, server, scheme, version, root_path))  # type: ignore[no-any-return]


def answer_block(details: str, trailing: Sequence[tuple[str, str | bytes]]) -> bytes:
    """What an answer of gRPC says beside its code and message; b"" for nothing."""
    return _packed((details, trailing)) if details or trailing else b""


def _packed(value: Any) -> bytes:
    """With text of user code, which may hold what no UTF-8 has: half of a character, a file's name that is none."""
    return msgpack.packb(value, unicode_errors="replace")  # type: ignore[no-any-return]


def read_answer_block(data: bytes) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
    """Details, trailing metadata.

    Raises:
        ProtocolError: no answer block.
    """
    if not data:
        return "", ()
    try:
        details, trailing = _unpackb(data, use_list=False)
    except Exception as error:
        raise ProtocolError(f"cannot decode answer: {error!r}") from error
    return details, trailing


def read_origin(data: bytes) -> tuple[Any, Any, str, str, str]:
    """client, server, scheme, HTTP version, root path.

    Raises:
        ProtocolError: no origin.
    """
    try:
        client, server, scheme, version, root_path = _unpackb(data, use_list=False)
    except Exception as error:
        raise ProtocolError(f"cannot decode origin: {error!r}") from error
    return client, server, scheme, version, root_path
