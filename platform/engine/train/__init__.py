"""Ray Train around a training loop, and the parts of a training loop."""
