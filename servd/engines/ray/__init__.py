"""A Ray cluster of today (2.60): what of an application would fail, be dropped or behave differently there, and the document
that says there what servd's says here.

What the cluster itself runs, where an application imports servd: `entry`, `shells`, `stand_ins`, `private_names`, and
`cluster_application`, `cluster_build`, `cluster_calls`, `cluster_replica`. The others need no Ray. Imports everything that
builds and runs an application. Used by `servd.engines`.
"""
