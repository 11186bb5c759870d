"""Side-by-side timings against what a user would install instead: `make bench`, or `python -m benchmarks.<name> --full`."""
