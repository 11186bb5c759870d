"""Shards of encoded images, sets of labeled images read from them, and results stored per shard."""
