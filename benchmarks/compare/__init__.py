"""servd side by side with the limit and with its peers, in one run: `python -m benchmarks.compare --help`."""
