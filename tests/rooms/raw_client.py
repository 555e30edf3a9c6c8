"""HTTP/1.x over a bare socket, with the face of httpx's client."""

import http.client
import io
import ssl
from typing import cast

import httpx

from tests.fakes import Room


class RawClient:
    """One connection per request; `version` is "1.1" or "1.0"."""

    def __init__(self, room: Room, version: str, tls: ssl.SSLContext | None) -> None:
        self._room = room
        self._version = version
        self._tls = tls
        self.base_url = httpx.URL(f"{'http' if tls is None else 'https'}://127.0.0.1:{room.port}")

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The response to a request.

        Raises:
            httpx.RemoteProtocolError: it is no whole response.
        """
        body = await request.aread()
        target = cast(bytes, request.extensions["target"])
        lines = [b"%b %b HTTP/%b" % (request.method.encode(), target, self._version.encode()), b"connection: close"]
        is_chunked = request.headers.pop("transfer-encoding", "") == "chunked" and self._version == "1.1"
        if is_chunked:
            lines.append(b"transfer-encoding: chunked")
            pieces = [body[start : start + 70_000] for start in range(0, len(body), 70_000)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nx-trailer: 1\r\n\r\n"
        elif body:
            request.headers["content-length"] = str(len(body))
        lines += [b"%b: %b" % (name.encode(), value.encode()) for name, value in request.headers.multi_items()]
        data = await self._room.raw(b"\r\n".join(lines) + b"\r\n\r\n" + body, tls=self._tls)
        return self._parse(data, request)

    def _parse(self, data: bytes, request: httpx.Request) -> httpx.Response:
        class Heard:
            def makefile(self, _: str) -> io.BytesIO:
                return io.BytesIO(data)

        heard = http.client.HTTPResponse(cast(http.client.socket.socket, Heard()), method=request.method)  # type: ignore[attr-defined]
        try:
            heard.begin()
            content = heard.read()
        except (http.client.HTTPException, ConnectionError) as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        headers = [pair for pair in heard.getheaders() if pair[0] != "transfer-encoding"]
        return httpx.Response(heard.status, headers=headers, content=content, request=request)
