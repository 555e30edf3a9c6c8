#!/bin/bash
# Guess, before looking: a ping between two frames of a compressed message (RFC 6455, 5.4: control frames may come there) changes nothing for
# wsproto with `permessage-deflate`, whatever the message is.
# Seen: the connection ends. wsproto unpacks the frames before the ping and takes those behind it as they are, since a control frame clears
# the note that the message around it is compressed; packed bytes are no UTF-8, so the client is told farewell with code 1007. Without the ping
# the same frames are the message.
# Exits 0 as long as that is so.
set -eu
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install -q wsproto==1.3.2
cat > "$directory/ping.py" <<'END_OF_PING'
import zlib

import wsproto
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Request, TextMessage
from wsproto.extensions import PerMessageDeflate


def frame(opcode, data):
    mask = b"\0\0\0\0"
    return bytes((opcode, 0x80 | len(data))) + mask + data


def heard(between):
    client, server = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.send(Request(host="h", target="/", extensions=[PerMessageDeflate()])))
    assert isinstance(next(server.events()), Request)
    server.send(AcceptConnection(extensions=[PerMessageDeflate()]))
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress("größer ".encode() * 9) + packer.flush(zlib.Z_SYNC_FLUSH)
    packed = packed.removesuffix(b"\x00\x00\xff\xff")
    half = len(packed) // 2
    # text, compressed, goes on; then what stands between; then its end
    server.receive_data(frame(0x41, packed[:half]) + between + frame(0x80, packed[half:]))
    found = list(server.events())
    codes = [int(event.code) for event in found if isinstance(event, CloseConnection)]
    return "".join(event.data for event in found if isinstance(event, TextMessage)), codes


print("wsproto", wsproto.__version__)
plain, pinged = heard(b""), heard(frame(0x89, b"?"))
print("without a ping:", plain)
print("with one:", pinged)
assert plain == ("größer " * 9, [])
assert plain[0].startswith(pinged[0]) and pinged[1] == [1007]
END_OF_PING
"$directory/venv/bin/python" "$directory/ping.py"
