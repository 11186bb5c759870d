"""Selection of the images to pre-train on: the Catastrophic Forgetting Score and the choice of a subset."""
