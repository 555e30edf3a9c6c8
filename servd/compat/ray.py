"""Importing this makes `import ray` and `from ray import serve` work in this process; see `ray_names`."""

from servd.compat.ray_names import install

install()
