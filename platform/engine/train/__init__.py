"""Ray Train around a training loop, and what any loop is made of."""
