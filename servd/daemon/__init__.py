"""The process that outlives all others: its sockets and its lock; and how one is found, started, stopped and asked.

Imports `ground` and `wire`; the process itself stays without user input, so that it does not fail. Used by the command line
and by Python programs that look for a daemon.
"""
