"""The end of a connection behind its last answer, while its client may still be sending."""

import asyncio

from servd.proxy.client_host import received_bytes

_SILENCE_S = 1.0
_LONGEST_S = 30.0


def part(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    """Close it once its client has closed too, sends nothing for a second, or has gone on for half a minute.

    What comes meanwhile is to be read, and dropped: closing with something unread resets the connection, which takes from the
    client what it has not got of the answer, and from one that writes all before it reads the answer itself (RFC 9112, 9.6).
    """
    if transport.can_write_eof():
        transport.write_eof()
    _look_again(transport, loop, loop.time() + _LONGEST_S)


def _look_again(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, until: float) -> None:
    received = received_bytes(transport.get_extra_info("socket"))
    loop.call_later(_SILENCE_S, _look, transport, loop, until, received)


def _look(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, until: float, before: int) -> None:
    if transport.is_closing():
        return
    goes_on = received_bytes(transport.get_extra_info("socket")) > before or transport.get_write_buffer_size() > 0
    if goes_on and loop.time() < until:
        _look_again(transport, loop, until)
    else:
        transport.close()
