"""What tells people what happened: logs, the journal of requests, counts, tracebacks, where a loop hangs.

Imports `ground` and `wire`. Used by every process that has something to tell. Nothing here may raise because of what it
describes, and nothing may slow a request down.
"""
