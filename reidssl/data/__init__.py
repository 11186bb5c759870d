"""Data sets: their layouts, and synthetic people."""
