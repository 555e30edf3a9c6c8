"""The server's end of a WebSocket, as far as it is the same in every process that has one.

Imports `wire` and `ground`.
"""
