"""What logs, metrics and traces cost: `python -m benchmarks.observability --help`."""
