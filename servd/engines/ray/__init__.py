"""A Ray cluster of today (2.60): what of an application would fail, be dropped or behave differently there, and the document
that says there what servd's says here.

Needs no Ray. Imports `documents`, `schema` and what imports and flattens an application. Used by `servd.engines`.
"""
