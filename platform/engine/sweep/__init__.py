"""The search space of a sweep."""
