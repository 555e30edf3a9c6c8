"""The server's end of a WebSocket: the protocol, and a client's connection that runs it.

Imports `wire` and `ground`, and the library `websockets`. Loaded by a replica with the first WebSocket that is handed over to it;
a proxy takes the rules of pings from here, and every replica those of what handlers say.
"""
