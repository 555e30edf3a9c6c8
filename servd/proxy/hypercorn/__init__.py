"""The lane of a proxy for what is no plain HTTP/1.1: WebSockets over TLS, HTTP/2, and WebSockets inside it.

Imports `proxy` and what is below, and the library `hypercorn` with its own; loaded by a proxy when the first such client comes.
"""
