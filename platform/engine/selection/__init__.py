"""Scores and selections in storage: the parts of scores, kept features, comparisons, and the images of a selection as shards."""
