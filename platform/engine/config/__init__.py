"""Compose `configs/` and the command line into one validated dataclass, and print the help about its settings."""
