"""The controller process: it does what `controller.plan` decided, hears what came of it, and keeps goal and facts on disk.

Imports `controller.plan`, `rest` and what is below. Started by the daemon, used by nobody.
"""
