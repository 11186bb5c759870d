"""What a sweep tries."""
