"""Neighbor search and pseudo-labels shared out over Ray actors."""
