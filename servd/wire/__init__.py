"""What crosses a process boundary, and how: the ZeroMQ link with its records, the control lines with their messages.

Imports `ground`. Used by whoever speaks to another process: callers, proxies, replicas, the controller and the daemon. What
a message means is decided where it arrives; here is only what it looks like, and that it gets there.
"""
