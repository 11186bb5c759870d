"""Neighbor search and pseudo-labels distributed over Ray actors."""
