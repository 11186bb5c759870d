"""Shards of encoded images, sets of labeled images read from them, and results that lie beside them."""
