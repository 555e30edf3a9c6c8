"""Documents that people write, and the answers that they read: models, checks, shapes, the words of faults.

Imports `ground` and `wire`, and the public `config` and `schema`, which stand on the same floor. Used by the admin API, the
command line and the controller. Touches no socket; reads files only where a command names one.
"""
