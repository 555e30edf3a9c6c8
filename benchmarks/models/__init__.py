"""Models beside other serving systems, in one run and one table: `python -m benchmarks.models --help`."""
