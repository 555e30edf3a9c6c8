"""A Ray cluster of today (2.60) from outside: what of an application would fail, be dropped or behave differently there, the
document that says there what servd's says here, and how it gets there.

Needs no Ray. Imports everything that checks and describes an application. Used by `servd.engines`; what the cluster runs is
`engines/on_ray`.
"""
