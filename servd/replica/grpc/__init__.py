"""Calls of gRPC inside a replica: from the bytes of a request to the user's method and back to bytes.

Imports `app`, `calls` and what is below; used by `replica`, and only where the application has servicers.
"""
