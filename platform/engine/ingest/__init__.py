"""Convert any source of images into shards."""
