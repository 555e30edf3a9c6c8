"""The end of a connection behind its last answer, while its client may still be taking that, or sending."""

import asyncio
from contextlib import suppress

from servd.proxy.client_host import received_bytes, untaken_bytes

_SILENCE_S = 1.0
_LONGEST_S = 30.0


def part(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    """Close it once its client has closed too, has taken all and sends nothing for a second, or has gone on for half a minute.

    What comes meanwhile is to be read, and dropped: closing with something unread resets the connection, which takes from the
    client what it has not got of the answer, and from one that writes all before it reads the answer itself (RFC 9112, 9.6).
    """
    try:
        if transport.can_write_eof():
            transport.write_eof()
    except OSError:
        # the client has reset it meanwhile
        transport.abort()
        return
    _look_again(transport, loop, loop.time() + _LONGEST_S)


def _look_again(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, until: float) -> None:
    received = received_bytes(transport.get_extra_info("socket"))
    loop.call_later(_SILENCE_S, _look, transport, loop, until, received)


def _look(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, until: float, before: int) -> None:
    if transport.is_closing():
        return
    if loop.time() < until and _goes_on(transport, before):
        _look_again(transport, loop, until)
    else:
        transport.close()


def _goes_on(transport: asyncio.WriteTransport, before: int) -> bool:
    sock = transport.get_extra_info("socket")
    return transport.get_write_buffer_size() > 0 or untaken_bytes(sock) > 0 or received_bytes(sock) > before


async def parted(transport: asyncio.WriteTransport, closed: asyncio.Event) -> None:
    """Return when it may be closed, as `part` says, on a connection of which only this end has a say. closed: the client has."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _LONGEST_S
    while not closed.is_set():
        before = received_bytes(transport.get_extra_info("socket"))
        with suppress(TimeoutError):
            async with asyncio.timeout(_SILENCE_S):
                await closed.wait()
        if transport.is_closing() or loop.time() >= until or not _goes_on(transport, before):
            return
