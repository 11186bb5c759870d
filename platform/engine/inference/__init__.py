"""Models in storage, and the results computed with them: features, retrieval metrics, probes."""
