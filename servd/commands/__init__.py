"""What each verb of the command line does, and what a terminal shows of it.

Imports `app`, `daemon`, `documents` and what is below; the control plane only through the admin API. Used by `servd.cli`,
which is paths and options and imports a command when it is given.
"""
