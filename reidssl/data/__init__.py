"""Data sets: their layouts and labels, image and video decoding, and batch sampling."""
