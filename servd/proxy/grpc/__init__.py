"""The lane for gRPC of a proxy: calls in, requests to replicas out, messages as the bytes that they are.

Imports `calls` and what is below, and the library `grpc`; loaded by a proxy that has a port for it, by nobody else.
"""
