"""From `configs/` and the command line to one validated dataclass, and the help that describes it."""
