"""What a Ray cluster itself runs where an application imports servd: this package as one of `py_modules`, inside Ray's replicas.

Begins with `entry`, which a document names as `import_path`. Ray is there, and what `ray[serve]` brings; of servd's other
dependencies none. Imports everything that builds and runs an application, and no socket of servd's. Used by the cluster alone.
"""
