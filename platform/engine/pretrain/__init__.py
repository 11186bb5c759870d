"""The parts of the training loop of platform.pretrain."""
