"""Shards of encoded images, sets of labelled images read from them, and results that lie beside them."""
