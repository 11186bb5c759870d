"""What the programs stand on: Ray, object storage, shards, the sample stream and training."""
