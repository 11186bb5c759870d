"""Evaluation of features: ranking and verification metrics, with or without re-ranking and query expansion."""
