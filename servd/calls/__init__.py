"""The caller's half of the data plane: choose a replica, wait in line, send, retry, hear the result.

Imports `ground`, `wire`, `observability` and, for drivers that look for a daemon, `daemon`. Used by handles, proxies and
replicas: whoever sends requests to a replica. The other half is `replica`.
"""
