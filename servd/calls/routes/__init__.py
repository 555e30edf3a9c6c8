"""Where a path leads: to which deployment, and which route of its application answers there.

Imports `observability`, `wire` and `ground`. Used by proxies and replicas, by handles that pass on where their request came in,
and by what reads the routes of an application.
"""
