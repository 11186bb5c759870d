"""Models in storage, and what is computed with them: features, retrieval results, probes."""
