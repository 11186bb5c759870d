"""From any source of images to shards."""
