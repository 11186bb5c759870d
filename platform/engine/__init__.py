"""The parts that the programs are built from: Ray, object storage, shards, the sample stream and training."""
