"""What the training loop of platform.pretrain is made of."""
