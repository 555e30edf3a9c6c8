"""The proxy process: HTTP in, requests to replicas out. Never imports user code, and stays without pydantic.

Imports `calls` and what is below. Started by the controller, used by nobody. Two lanes on one port, HTTP/1.1 and Hypercorn's,
share one forwarder.
"""
