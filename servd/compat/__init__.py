"""`import ray` where Ray is not installed: servd's public modules under the names that applications know.

Imports `servd.exceptions`; everything else by name, when an application asks for it. Used by fork servers and by programs
that `servd exec` starts.
"""
