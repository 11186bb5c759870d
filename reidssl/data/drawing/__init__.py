"""Drawn street scenes with people, for `reidssl.data.synthetic`."""
