"""The checks of platform.pipeline before its stages, and the results after them."""
