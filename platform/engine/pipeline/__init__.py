"""What platform.pipeline asks for before its stages, and what it knows after them."""
