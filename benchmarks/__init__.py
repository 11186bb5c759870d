"""Timings side by side with the usual alternatives: `make bench`, or `python -m benchmarks.<name> --full`."""
