"""A whole application in one process, without daemon and sockets, for tests of applications.

Imports `replica`, whose user callable it runs, and what is below. Used by `servd.run(..., local=True)`.
"""
