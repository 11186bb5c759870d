"""Pseudo-labels from features, and the cluster memory that learns from them."""
