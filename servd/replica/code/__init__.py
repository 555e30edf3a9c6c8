"""From a URI to code that can be imported: downloads, archives, environments, packages, and the import itself.

Imports `app`, `compat`, `documents` and what is below. Used by fork servers and by replicas that are spawned.
"""
