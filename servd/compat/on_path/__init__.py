"""A directory for PYTHONPATH: `import ray` finds servd's alias package in programs that know nothing of servd."""
