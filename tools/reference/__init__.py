"""Pages of `docs/reference/` that are made from the code: `python -m tools.reference` writes them.

A test of `tests/house/` says when a page that is there is not the one that would be written.
"""
