"""The admin API: paths, verbs, access, bodies, and the server that answers on the port and the Unix socket.

Imports `documents` and what is below. Runs in the controller's process, which hands it the control plane as the protocol of
`documents.control_plane`.
"""
